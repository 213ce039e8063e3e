"""The memory that a process frees."""

from __future__ import annotations

import contextlib
import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and numbers of glibc's malloc.h
TASK_KEEPS = 128 * 2**20  # bytes: of a task's pictures
TRAINER_KEEPS = 2**31 - 1  # of a training step's activations
LARGEST_KEPT = 2**30  # bytes of a block
DOCUMENTED_LARGEST_KEPT = 2**25  # mallopt(3) promises no more; glibc 2.36 takes it


@functools.cache
def keep_freed_memory(most: int) -> None:
    """Tell glibc to keep up to `most` bytes (below 2³¹) of what this process frees, for what comes next; the first call
    of a number counts. Elsewhere nothing happens.

    Left alone, glibc gives large blocks back to the system and gets them anew, one page fault for every 4 KiB: a fifth
    of the time of a task that decodes pictures, a twentieth of a training step of small networks.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for largest in (LARGEST_KEPT, DOCUMENTED_LARGEST_KEPT):
            if libc.mallopt(M_MMAP_THRESHOLD, min(most, largest)):
                break
        libc.mallopt(M_TRIM_THRESHOLD, most)
