"""How many songs to work on at a time: as many as this process has cores and memory for.

Containers and job schedulers give a process less than the machine has: by the processors that it
may run on, and by its control groups (cgroups) on Linux. This module does not import torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SHARE = 0.8  # of the memory that is free, for the songs
ROOT = Path("/")  # of the files in which Linux tells its limits


def at_once(songs: int, each: float) -> int:
    """How many of `songs` songs to work on at a time, if one takes a core and `each` bytes.

    At least one. Where the memory is not known, only the cores count.
    """
    free = memory()
    fits = songs if free is None else int(SHARE * free / max(each, 1))
    return max(min(songs, cores(), fits), 1)


def cores() -> int:
    """Cores that this process may use, at least one."""
    count = os.cpu_count() or 1
    with suppress(AttributeError):  # not all systems know affinity
        count = min(count, len(os.sched_getaffinity(0)))
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):
            if (group / "cpu.max").exists():
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:  # "max" and -1: no limit
                count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def memory() -> int | None:
    """Bytes of memory that this process can still take; None if the system does not tell."""
    free = []
    with suppress(OSError, ValueError, IndexError):
        lines = (ROOT / "proc/meminfo").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        free.append(1024 * int(line.split()[1]))
    if not free:
        with suppress(AttributeError, OSError, ValueError):  # macOS tells the whole alone
            free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    for group in _groups("memory"):
        names = ("memory.max", "memory.current", "inactive_file")
        if not (group / names[0]).exists():
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        with suppress(OSError, ValueError):
            limit, used = (int((group / name).read_text()) for name in names[:2])
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # Files that are in memory only because they were read make room.
            free.append(max(limit - used + int(stat.get(names[2], 0)), 0))
    return min(free, default=None)


def _groups(kind: str) -> Iterator[Path]:
    """The folders of this process's control groups that limit `kind`, and of those around them."""
    with suppress(OSError):
        for line in (ROOT / "proc/self/cgroup").read_text().splitlines():
            _, kinds, place = line.split(":", 2)
            if kinds and kind not in kinds.split(","):
                continue
            # Version 1 has a hierarchy for each kind, version 2 has one for all.
            for top in [kinds, kind] if kinds else ["", "unified"]:
                base = ROOT / "sys/fs/cgroup" / top
                own = base / place.strip("/")
                # In a container the place can be the host's: then its own group is the top one.
                yield from (own, *(up for up in own.parents if up.is_relative_to(base)))
