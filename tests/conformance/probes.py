"""Scripts that are run both ways. Whatever they print or raise, and how they end, is compared."""

# Everything that a process can see of itself, as JSON, but for what `hpc_launch.workers.script` says that it differs in.
FACTS = r"""
import builtins, faulthandler, gc, json, locale, multiprocessing, os, resource, signal, sys, threading, time
import tracemalloc, warnings

def stream(stream):
    if stream is None:
        return None
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    names = ("encoding", "errors", "line_buffering", "write_through", "newlines", "mode", "name")
    return [
        type(stream).__name__, *[getattr(stream, name) for name in names], stream.fileno(), stream.isatty(),
        type(buffer).__name__, buffer.name, buffer.mode, type(raw).__name__, raw.closefd, raw.mode,
    ]

RESERVED = signal.SIGRTMIN + 10, signal.SIGRTMIN + 11

def handlers():
    return {int(s): str(signal.getsignal(s)) for s in signal.valid_signals() if s not in (9, 19, *RESERVED)}

status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
descriptors = {}
for name in sorted(os.listdir("/proc/self/fd"), key=int):
    try:
        link = os.readlink(f"/proc/self/fd/{name}")
        if not link.startswith("/memfd:hpc-launch "):
            descriptors[name] = [link, os.get_inheritable(int(name))]
    except OSError:
        pass  # the one of the listing itself
usage = resource.getrusage(resource.RUSAGE_SELF)
main = sys.modules["__main__"]
facts = {
    "argv": sys.argv,
    "orig_argv": sys.orig_argv,
    "path": sys.path,
    "globals": sorted(globals()),
    "main": [__name__, globals().get("__file__"), str(__spec__).partition(" object at ")[0], __package__, __doc__, type(__loader__).__name__],
    "loader": str(__loader__).partition(" object")[0],
    "cached": globals().get("__cached__"),
    "annotations": globals().get("__annotations__"),
    "main is main": [main.__dict__ is globals(), type(main).__name__, __builtins__ is builtins],
    "cwd": os.getcwd(),
    "flags": str(sys.flags),
    "options": [str(sys._xoptions), sys.warnoptions],
    "filters": [str(item) for item in warnings.filters],
    "python": [sys.executable, sys.prefix, sys.base_prefix, sys.dont_write_bytecode, sys.pycache_prefix, sys.version],
    "streams": [stream(item) for item in (sys.stdin, sys.stdout, sys.stderr)],
    "same streams": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
    "encodings": [sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), locale.getpreferredencoding(False)],
    "locale": locale.setlocale(locale.LC_ALL),
    "environ": dict(sorted(os.environ.items())),
    "environ of a child": sorted(os.popen("env").read().splitlines()),
    "handlers": handlers(),
    "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "signals": {name: int(status[name], 16) & ~sum(1 << s - 1 for s in RESERVED)
                for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn", "SigCgt")},
    "timers": [signal.getitimer(kind) for kind in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
    "wakeup": signal.set_wakeup_fd(-1),
    "capabilities": {name: status[name] for name in ("CapInh", "CapPrm", "CapEff", "NoNewPrivs", "Seccomp", "Umask")},
    "descriptors": descriptors,
    "leads": [os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()],
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT_" in name},
    "affinity": sorted(os.sched_getaffinity(0)),
    "priority": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)],
    "threads": [len(os.listdir("/proc/self/task")), [thread.name for thread in threading.enumerate()]],
    "main thread": [threading.main_thread() is threading.current_thread(), threading.get_native_id() == os.getpid()],
    "gc": [gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.garbage],
    "debuggers": [faulthandler.is_enabled(), tracemalloc.is_tracing(), str(sys.gettrace()), str(sys.getprofile())],
    "hooks": [sys.excepthook is sys.__excepthook__, sys.displayhook is sys.__displayhook__,
              sys.breakpointhook is sys.__breakpointhook__, sys.unraisablehook is sys.__unraisablehook__,
              threading.excepthook is threading.__excepthook__],
    "limits of Python": [sys.getrecursionlimit(), sys.getswitchinterval(), threading.stack_size()],
    "multiprocessing": [multiprocessing.current_process().name, str(multiprocessing.parent_process()),
                        multiprocessing.get_start_method(allow_none=True), multiprocessing.active_children(),
                        len(multiprocessing.current_process().authkey)],
    "little time": [usage.ru_utime < 5, usage.ru_stime < 5, time.process_time() < 5],
    "children": [resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime < 5],
    "group": open("/proc/self/cgroup").read(),
    "score": open("/proc/self/oom_score_adj").read(),
    "comm": open("/proc/self/comm").read(),
}
text = json.dumps(facts, default=str, indent=1)
(open(sys.argv[1], "w").write if len(sys.argv) > 1 else print)(text)
"""

# Scripts by what they are about. A file of more than one module is a mapping of its own.
SCRIPTS: dict[str, str | bytes] = {
    # How it ends.
    "returns": "pass",
    "exit 3": "import sys; sys.exit(3)",
    "exit 256": "import sys; sys.exit(256)",
    "exit -1": "import sys; sys.exit(-1)",
    "exit None": "import sys; sys.exit(None)",
    "exit True": "import sys; sys.exit(True)",
    "exit text": "import sys; sys.exit('a text \u00e4')",
    "exit list": "import sys; sys.exit([1, 2])",
    "exit of a function": "def f():\n    raise SystemExit(9)\nf()",
    "exit by exit()": "exit(5)",
    "exit in a thread": "import sys, threading\nt = threading.Thread(target=sys.exit, args=(4,)); t.start(); t.join()",
    "os._exit": "import os; print('not flushed', end=''); os._exit(7)",
    "abort": "import os; os.abort()",
    **{f"SIG{name}": f"import os, signal; os.kill(os.getpid(), signal.SIG{name})" for name in ("TERM", "KILL", "HUP")},
    "SIGINT": "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(1)",
    "SIGINT in a function": "def f():\n    raise KeyboardInterrupt\nf()",
    "SIGINT that is an exit": "import sys\ntry:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt:\n    sys.exit(6)",
    "SIGSEGV with faulthandler": (
        "import faulthandler, os, signal; faulthandler.enable(all_threads=False)\nprint('x')\n"
        "os.kill(os.getpid(), signal.SIGUSR1)"
    ),
    # What is said of exceptions.
    "exception": "def f(x):\n    return 1 / x\nf(0)",
    "exception with a cause": "try:\n    {}['a']\nexcept KeyError as e:\n    raise ValueError('b') from e",
    "exception with a context": "def f():\n    try:\n        int('x')\n    finally:\n        {}['y']\nf()",
    "exception with notes": "class Own(BaseException):\n    def __str__(self): return 'own'\nraise Own",
    "exception in a thread": "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='T'); t.start(); t.join()",
    "exception in atexit": "import atexit\n@atexit.register\ndef f():\n    raise ValueError('late')",
    "exception with a hook": (
        "import sys, traceback\n"
        "sys.excepthook = lambda *a: print('hook', a[0], len(traceback.extract_tb(a[2])), a[1].__traceback__ is a[2])\n"
        "def f(): raise ValueError('x')\nf()"
    ),
    "exception with a hook that exits": "import sys\ndef hook(*a):\n    sys.exit(11)\nsys.excepthook = hook\n1 / 0",
    "exception of a deep call": "def f(n):\n    return f(n - 1) if n else 1 / 0\nf(20)",
    "assertion": "assert 1 == 2, 'never'",
    "syntax error": "x = 1\nif x\n    pass",
    "indentation": "def f():\n  x\n y",
    "tabs": "if True:\n\tx = 1\n        y = 2",
    "latin-1": b"# -*- coding: latin-1 -*-\nprint(ascii('\xe4'))",
    "byte order mark": b"\xef\xbb\xbfprint('bom')",
    "carriage returns": b"print(1)\r\nprint('''a\r\nb'''.encode())\r\n",
    "future": "from __future__ import annotations\ndef f(x: y): pass\nprint(f.__annotations__)",
    "no future": "def f(x: int): pass\nprint(f.__annotations__)",
    "warning": "import warnings\nwarnings.warn('careful')\nwarnings.warn('old', DeprecationWarning)",
    "failed import": "import no_such_module",
    # What happens after the end.
    "atexit order": "import atexit\nfor n in range(3):\n    atexit.register(print, n)",
    "exit in atexit": "import atexit, sys\natexit.register(lambda: sys.exit(12))",
    "threads that go on": "import threading\nthreading.Thread(target=lambda: (threading.main_thread().join(), print('late'))).start()",
    "daemons that go on": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    "objects at the end": "class C:\n    def __del__(self): print('gone', C)\nx = C()\ny = [C()]\ny.append(y)",
    "files at the end": "import sys\nf = open(sys.argv[1] + '.more', 'w') if sys.argv[1:] else None\nprint('x')",
    "closed stdout": "import sys\nprint('a')\nsys.stdout.close()",
    "no stdout": "import os, sys\nos.close(1)\ntry:\n    print('x')\nexcept OSError as error:\n    sys.exit(repr(error))",
    # Streams.
    "unbuffered": "import os, sys\nprint('a', end='')\nos.write(1, b'b')\nsys.stderr.write('c')\nos.write(2, b'd')\nos._exit(0)",
    "bytes": "import sys\nsys.stdout.buffer.write(b'\\xff\\n')\nprint('\\udcff'.encode('utf-8', 'surrogateescape'))",
    "what cannot be encoded": "print('\\udcff')",
    "what stderr cannot encode": "import sys\nprint('\\udcff', file=sys.stderr)",
    "stdin": "import sys\nprint(ascii(sys.stdin.read()))",
    # The rest of Python.
    "own names": "print(sorted(k for k in globals() if k != 'x'))",
    "main has them": "import __main__\nx = 1\nprint(__main__.x, __main__.__name__)",
    "pickle": (
        "import pickle\nclass C:\n    pass\ndata = pickle.dumps([C(), C])\n"
        "print(C.__module__, type(pickle.loads(data)[0]) is C)"
    ),
    "source of itself": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f), inspect.getfile(f))",
    "doctest": "'''\n>>> 1 + 1\n2\n'''\nimport doctest\nprint(doctest.testmod())",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 1\nprint(P())",
    "typing": "import typing\nclass A:\n    b: 'A'\nprint(typing.get_type_hints(A))",
    "logging": "import logging\nlogging.warning('root')\nlogging.getLogger('a').error('named')\nprint(logging.root.handlers)",
    "child": "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'import os; print(os.listdir(\"/proc/self/fd\"))'], "
    "capture_output=True, text=True).stdout)",
    "fork": "import os\npid = os.fork()\nif not pid:\n    print('child')\n    raise SystemExit(3)\nprint(os.waitpid(pid, 0)[1])",
    "pdb": "breakpoint()\nprint('after')",
    "multiprocessing by fork": "METHOD = 'fork'\n__POOL__",
    "multiprocessing by spawn": "METHOD = 'spawn'\n__POOL__",
    "multiprocessing by forkserver": "METHOD = 'forkserver'\n__POOL__",
    "executor": (
        "import concurrent.futures as f\ndef g(x): return x * x\n"
        "if __name__ == '__main__':\n    with f.ProcessPoolExecutor(2) as p: print(list(p.map(g, range(3))))"
    ),
    "shared memory": (
        "from multiprocessing import shared_memory\n"
        "m = shared_memory.SharedMemory(create=True, size=9)\nprint(len(m.buf) >= 9)\nm.close()\nm.unlink()"
    ),
    "asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(0)\n    return 5\nprint(asyncio.run(f()))",
    "asyncio interrupted": "import asyncio, os, signal\nasync def f():\n    os.kill(os.getpid(), signal.SIGINT)\n"
    "    await asyncio.sleep(9)\nasyncio.run(f())",
    "runpy": "import runpy\nrunpy.run_module('this_is_not_there')",
    "signal handler": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: print('usr1'))\nos.kill(os.getpid(), signal.SIGUSR1)",
    "alarm": "import signal, time\nsignal.alarm(1)\ntime.sleep(9)",
    "umask": "import os\nprint(os.umask(0))",
}

_POOL = """
import multiprocessing, os
class Point:
    def __init__(self, x): self.x = x
def double(point): return Point(point.x * 2)
def fail(point): raise ValueError(point.x)
def main():
    context = multiprocessing.get_context(METHOD)
    with context.Pool(2) as pool:
        print([p.x for p in pool.map(double, [Point(1), Point(2)])])
    queue = context.Queue()
    process = context.Process(target=queue.put, args=(Point(3),))
    process.start()
    print(queue.get().x)
    process.join()
    print(process.exitcode, process.name)
if __name__ == "__main__":
    main()
"""
SCRIPTS = {name: text.replace("__POOL__", _POOL) if isinstance(text, str) else text for name, text in SCRIPTS.items()}
