"""DVC experiments run by name and read back: what `seeds` and `ablations` have in common.

An experiment counts as done while the code and parameters that it ran with are those of HEAD. DVC's
run-cache keeps every stage that ever ran, so that a second time only what has changed runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

# What an experiment's numbers depend on.
CODE = ("jukesep", "stages", "conf", "dvc.yaml", "params.yaml")
POLL = 15.0  # seconds


def run(wanted: Mapping[str, Sequence[str]], jobs: int) -> None:
    """Run the experiments (name -> overrides) that are not done, `jobs` at a time.

    They are queued and run in folders of their own: the workspace stays as it is. Exits with a
    message if the working tree has changes that an experiment would not see, or if one fails.
    """
    missing = {name: overrides for name, overrides in wanted.items() if not done(name)}
    if not missing:
        return
    if _output("git", "status", "--porcelain", "--", *CODE):
        sys.exit("error: uncommitted changes in the code or the parameters; commit them first.")
    old = [name for name in missing if _revision(name)]
    if old:
        subprocess.run(["dvc", "exp", "remove", *old], check=True)
    for name, overrides in missing.items():
        options = [word for override in overrides for word in ("-S", override)]
        subprocess.run(["dvc", "exp", "run", "--queue", "--name", name, *options], check=True)
    # Side by side, more threads than cores would slow all of them.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    subprocess.run(["dvc", "queue", "start", "-j", str(jobs)], check=True, env=environment)
    _wait(list(missing))


def done(name: str) -> bool:
    """Whether the experiment is there and belongs to the code and parameters of HEAD."""
    revision = _revision(name)
    if revision is None:
        return False
    compared = ["git", "diff", "--quiet", f"{revision}^", "HEAD", "--", *CODE]
    return subprocess.run(compared, check=False).returncode == 0


def read(name: str, path: str) -> dict[str, float]:
    """A metrics file of an experiment, by its path in the project."""
    return json.loads(_output("git", "show", f"{_revision(name)}:{path}"))


def _wait(names: list[str]) -> None:
    start = time.monotonic()
    # A task that is being handed to a worker is in no list for a moment: only the end counts.
    while waiting := [name for name in names if not done(name)]:
        for line in _output("dvc", "queue", "status").splitlines():
            for name in waiting:
                if name in line.split() and "Failed" in line:
                    sys.exit(f"error: {name} failed; `dvc queue logs {name}` says why.")
        finished, seconds = len(names) - len(waiting), time.monotonic() - start
        left = f", about {seconds / finished * len(waiting) / 60:.0f} min left" if finished else ""
        print(f"{finished} of {len(names)} experiments, {seconds / 60:.0f} min{left}", flush=True)
        time.sleep(POLL)


def _revision(name: str) -> str | None:
    """The reference of an experiment, if it is there."""
    for line in _output("git", "for-each-ref", "refs/exps", "--format=%(refname)").splitlines():
        if line.endswith(f"/{name}") and "/exec/" not in line:
            return line
    return None


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
