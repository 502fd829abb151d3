"""Owners of files and directories: the rules that say which ones are used, and the functions that open them.

Two questions are answered here, and nowhere else:

    Is this a file of one's own?    What a run writes, and what it reads back in order to act on it: the job directory
                                    and all below it. See `folders`: `open_folder`, `Folder.open` and `read_own`.
    Are these settings trusted?     Settings files, profiles and templates, which say what is run. See `settings_trust`.

The directories above a job directory may belong to others. They are refused where everybody can rename what is in them:
world-writable without the sticky bit. The same holds for symbolic links on the way (the rule of
`fs.protected_symlinks`, which not every system has switched on).

File systems that map owners (NFS with root squash, CIFS, AFS) show another owner than this process. A new file shows it
too, so that is tried where a directory seems to belong to somebody else.
"""

from hpc_launch.file_ownership.folders import (
    Folder,
    is_own,
    is_own_directory,
    open_folder,
    open_shared,
    read_own,
    read_shared,
    temporary_name,
)
from hpc_launch.file_ownership.parents import check_parents, make_parents
from hpc_launch.file_ownership.rules import (
    FileStatus,
    NotOwnError,
    fault_of_directory,
    fault_of_file,
    fault_of_link,
    fault_of_parent,
    fault_of_settings,
)
from hpc_launch.file_ownership.settings_trust import distrust

__all__ = [
    "FileStatus",
    "Folder",
    "NotOwnError",
    "check_parents",
    "distrust",
    "fault_of_directory",
    "fault_of_file",
    "fault_of_link",
    "fault_of_parent",
    "fault_of_settings",
    "is_own",
    "is_own_directory",
    "make_parents",
    "open_folder",
    "open_shared",
    "read_own",
    "read_shared",
    "temporary_name",
]
