"""Memory that one step frees is kept for the next one.

glibc gives large blocks back to the system as soon as they are free, and the system clears every
page that it hands out again: measured 10 to 25 % of a step on a CPU (docs/performance.md). A
process that keeps them holds what its largest step took.
"""

from __future__ import annotations

import ctypes

# One arena, as that of a thread other than the first keeps no block above 64 MB.
KEPT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**62),
}  # environment of a process, read at its start
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # numbers of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets this process keep what its first thread frees; does nothing without glibc."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_TRIM_THRESHOLD, -1)
        set_option(_MMAP_MAX, 0)
