"""Train a stage's next items beside this one, on cores that would wait.

DVC runs one stage at a time, and the training of a small model keeps little more than one core
busy. So the items of a stage are trained in groups, as many at a time as there are cores for. The
process of the first one starts the others, and ends when all of them have ended. They leave their
results in the folder of trainings, and their own stage takes them from there, without PyTorch.

No result depends on this. JUKESEP_BESIDE=off trains one item at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..base import paths
from ..base.errors import UserError
from ..base.files import write_json
from ..base.parallel import cores
from ..base.params import Params
from ..base.progress import ROW
from . import identity, results
from .launch import asked
from .layout import read_progress

VARIABLE = "JUKESEP_BESIDE"
"""The switch: `auto`, the default, or `off`. A process started here has `child`."""
Item = tuple[str, ...]
"""The arguments of a stage's script, such as ("vocals", "scratch")."""


def is_child() -> bool:
    """Whether this process trains beside the one that started it, and leaves its results there."""
    return os.environ.get(VARIABLE) == "child"


def take_results(params: Params, stage: str, item: Mapping[str, str], out: Path) -> bool:
    """Copy the results of an item that was trained beside another one to `out`, if there are any.

    Returns whether it did. `item` is the entry of the stage's matrix. Results that are damaged, or
    of other parameters, inputs or code, are left to the training itself: it resumes or starts.
    """
    if is_child() or "TORCHELASTIC_RUN_ID" in os.environ or params.device not in ("auto", "cpu"):
        return False
    ours: dict[str, Any] | None = None
    for folder in paths.trainings().glob(f"{stage}-*"):
        if read_progress(folder).get("state") != "trained":
            continue
        if ours is None:
            ours = identity.identity(stage, item, params.model_dump(mode="json"))
            ours.pop("runs on")  # only a CPU trains items side by side
        with suppress(OSError, ValueError, Timeout), FileLock(folder / "lock", timeout=0.5):
            theirs = json.loads((folder / "identity.json").read_text(encoding="utf-8"))
            files = results.recorded(folder)
            if files and all(theirs.get(kind) == value for kind, value in ours.items()):
                results.deliver(files, folder, out)
                news = {"state": "finished", "runs_in": str(Path.cwd()), "updated": time.time()}
                known = read_progress(folder)
                write_json(folder / "progress.json", {**known, **news})
                results.note(folder, "finished")
                results.clear(folder)
                said = "was trained beside another one; takes its results."
                print(f"{known.get('title')}: {said}", file=sys.stderr)
                return True
    return False


@contextmanager
def next_items(params: Params, items: Sequence[Item]) -> Iterator[None]:
    """In the block of a group's first item, also run this script for the group's other items.

    They end with the block; after an error in it, they are stopped, and save their step. UserError
    for an unknown value of JUKESEP_BESIDE.
    """
    size = _at_once(params)
    own = items.index(tuple(sys.argv[1:]))
    others = items[own + 1 : own + size] if own % size == 0 else ()
    main: Any = sys.modules["__main__"]
    command = [sys.executable, "-m", main.__spec__.name]
    started: list[subprocess.Popen[bytes]] = []
    for row, item in enumerate(others, start=1):
        environment = {**os.environ, VARIABLE: "child", ROW: str(row)}
        started.append(subprocess.Popen([*command, *item], env=environment))
    try:
        yield
        for process in started:
            process.wait()  # it reports its errors itself, and its own stage meets them again
    finally:
        for process in started:
            with suppress(OSError):
                process.terminate()
        for process in started:
            process.wait()


def _at_once(params: Params) -> int:
    """How many trainings there are cores for; in a process started here, none beside its own."""
    value = os.environ.get(VARIABLE, "auto")
    if value not in ("auto", "off", "child"):
        raise UserError(f"{VARIABLE}={value}: no such value; set it to auto or off.")
    alone = value != "auto" or asked() > 1 or "TORCHELASTIC_RUN_ID" in os.environ
    # With threads=0 a training uses all cores.
    if alone or not params.threads:
        return 1
    from ..kernels import devices

    if devices.choose(params.device, params.threads).type != "cpu":
        return 1
    return max(cores() // params.threads, 1)
