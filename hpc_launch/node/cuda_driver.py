"""The driver of CUDA in this process: whether it is initialised, so that children that are forked cannot use it."""

from __future__ import annotations

import ctypes
import os

# cuda.h: every function but cuInit returns CUDA_ERROR_NOT_INITIALIZED before that one has succeeded.
_SUCCESS = 0


def is_initialised() -> bool:
    """Whether cuInit has succeeded here, whoever has called it. This loads nothing, and initialises nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return bool(driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == _SUCCESS)
