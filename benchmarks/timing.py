"""How the benchmarks measure: in turns, in processes of their own, on as many cores as they say.

Neither torch nor jukesep is imported before a measurement: a process is held to its cores first.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from jukesep.base.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")
Step = Callable[[], object]


def cores() -> int:
    """Cores that this process may run on."""
    with suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def fresh(count: int, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """function(...) in a new process on `count` cores (0: all).

    What ran before in this process leaves no trace in its time or in its peak of memory. UserError
    if the process is killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _hold, (count,)) as pool:
        try:
            return pool.submit(function, *args, **options).result()
        except BrokenProcessPool:
            raise UserError("its process was killed, most likely for want of memory") from None


def _hold(count: int) -> None:
    """Keep this process to `count` cores, before anything asks how many there are.

    It ends with the one that started it, also where that was killed.
    """
    threading.Thread(target=_follow, daemon=True).start()
    if not count:
        return
    with suppress(AttributeError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    # Who asks gets the machine's number, whatever the process may use.
    os.cpu_count = lambda: count


def _follow() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def interleaved(
    steps: Mapping[str, Step],
    seconds: float,
    least: int = 3,
    most: int = 25,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run of each step, run in turns: other programs then slow all of them.

    A first turn warms up and is not counted. Turns go on for about `seconds`, at least `least` and
    at most `most`. What runs on one core may be timed by time.process_time, which leaves out when
    other programs had that core.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for turn in range(most + 1):
        if turn > least and time.perf_counter() - begin > seconds:
            break
        for name, step in steps.items():
            start = clock()
            step()
            if turn:
                taken[name].append(clock() - start)
    return taken


def highest() -> int:
    """The most memory that this process ever had, in bytes.

    From Linux itself where it is there: getrusage counts what the parent had, too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS
