"""How much memory this machine has for us, and how much of it may be page-locked."""

import ctypes
import math
import os
import platform
import sys
from pathlib import Path

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""A container's limit, as cgroups of version 2 and of version 1 tell it to those inside."""


def host_memory_bytes() -> int:
    """The machine's memory, or what the container that we are in may use of it."""
    return min(_physical_bytes(), *map(_limit_in, _CGROUP_LIMITS))


def pin_limit_bytes() -> int:
    """The most that is worth asking to have page-locked; the system may refuse sooner, which is found by trying.

    Windows locks half of the memory at most, and so it does for WSL. RLIMIT_MEMLOCK is no limit here: NVIDIA's driver
    locks pages itself and does not look at it.
    """
    windows = sys.platform == "win32" or "microsoft" in platform.release().lower()
    return host_memory_bytes() // 2 if windows else host_memory_bytes()


def _physical_bytes() -> int:
    if sys.platform == "win32":
        status = _MemoryStatus(ctypes.sizeof(_MemoryStatus))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return status.total
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _limit_in(path: str) -> float:
    """The number of bytes in this file; infinite where there is no such file, or no limit in it."""
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return math.inf


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of the Windows API."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )
