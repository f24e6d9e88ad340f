"""Where a measurement was made: the machine, its libraries, and the code that ran."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# Of a processor's many features, those that decide how fast matrix products are.
FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
LIBRARIES = ("torch", "numpy", "numba", "scipy")


def describe() -> dict[str, Any]:
    """This machine and its libraries, as JSON."""
    return {
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "features": features(),
        "memory_gb": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def processor() -> str:
    """The name of this machine's processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def features() -> list[str]:
    """Those of `FEATURES` that this processor has; none where the system does not list them."""
    found = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return [name for name in FEATURES if name in found]


def code(modules: Iterable[Path] = ()) -> dict[str, Any]:
    """The code that is measured: a digest of jukesep/ and `modules`, and git's commit.

    `changed` says whether tracked files differ from the commit; without git there is no commit.
    """
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "jukesep").rglob("*.py"), *modules]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return {
        "digest": digest.hexdigest()[:16],
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no", "jukesep")),
    }


def _cpuinfo(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def _memory() -> float:
    """GB, of 10^9 bytes; 0 where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return 0.0


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
