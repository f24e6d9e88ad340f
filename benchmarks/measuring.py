"""How the benchmarks measure: in turns, in processes of their own, on a fixed number of cores.

Neither torch nor a model is imported before a measurement: a process is held to its cores first.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from jukesep.base import unchanged
from jukesep.base.errors import UserError
from jukesep.base.git import git
from jukesep.base.parallel import cores as cores
from jukesep.base.signals import when_orphaned

P = ParamSpec("P")
T = TypeVar("T")
Step = Callable[[], object]
Clock = Callable[[], float]

ROOT = Path(__file__).parents[1]
# Of a processor's many features, those that decide how fast matrix products are.
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
WIDEST = {
    "amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2",
    "sve": "SVE", "asimd": "NEON",
}  # fmt: skip
"""The features that tell kinds of processors apart, the best first, and their names."""
LIBRARIES = ("torch", "numpy", "numba", "scipy")


def fresh(count: int, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """function(...) in a new process on `count` cores (0: all).

    What ran before in this process changes neither its time nor its peak of memory. UserError if
    the process is killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _hold, (count,)) as pool:
        try:
            return pool.submit(function, *args, **options).result()
        except BrokenProcessPool:
            raise UserError("its process was killed; most likely it ran out of memory") from None


def _hold(count: int) -> None:
    """Keep this process to `count` cores, and end it when the process that started it ends."""
    when_orphaned(lambda: os._exit(1), os.getppid())
    if not count:
        return
    with suppress(AttributeError):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.cpu_count = lambda: count  # it would return the machine's number


def interleaved(
    steps: Mapping[str, Step],
    seconds: float,
    least: int = 3,
    most: int = 25,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each run of each step, run in turns, so that other programs slow all of them.

    The first turn warms up and is not counted. There are turns for about `seconds`, at least
    `least` and at most `most`. time.process_time leaves out the time in which other programs had
    the core.
    """
    taken: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for turn in range(most + 1):
        if turn > least and time.perf_counter() - begin > seconds:
            break
        for name, step in steps.items():
            spent, _ = timed(step, clock)
            if turn:
                taken[name].append(spent)
    return taken


def timed(run: Callable[[], T], clock: Clock = time.perf_counter) -> tuple[float, T]:
    """Seconds of a call, and its value."""
    start = clock()
    value = run()
    return clock() - start, value


def highest() -> int:
    """The most memory that this process ever had, in bytes.

    Linux's own figure where there is one: getrusage also counts what the parent had.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def machine() -> dict[str, Any]:
    """This machine and its libraries, as JSON."""
    memory = 0.0
    with suppress(AttributeError, ValueError, OSError):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "features": features(),
        "memory_gb": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def processor() -> str:
    """The name of this machine's processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def kind(machine: Mapping[str, Any]) -> str:
    """The kind of processor of a machine: its maker and its widest instructions."""
    maker = machine["processor"].replace("(R)", "").split()[0]
    found = (name for feature, name in WIDEST.items() if feature in machine.get("features", ()))
    return " ".join([maker, *[*found][:1]])


def features() -> list[str]:
    """Those of `FEATURES` that this processor has; none where the system does not list them."""
    found = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [name for name in FEATURES if name in found]


def _cpuinfo(name: str) -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return line.split(":", 1)[1].strip()
    return ""


def code(paths: Iterable[str]) -> dict[str, Any]:
    """A digest of the Python files at and below `paths`, and git's commit.

    `changed` says whether one of them differs from the commit. Without git there is no commit.
    """
    paths = list(paths)
    files = {file for name in paths for file in _python(ROOT / name)}
    return {
        "digest": unchanged.code(*files),
        "commit": git("rev-parse", "--short", "HEAD", folder=ROOT) or "",
        "changed": git("status", "--porcelain", "--", *paths, folder=ROOT) is not None,
    }


def _python(path: Path) -> Iterable[Path]:
    return path.rglob("*.py") if path.is_dir() else [path]
