"""DVC experiments run by name and read back: what `seeds` and `ablations` have in common.

An experiment counts as done while the code and parameters that it ran with are today's. DVC's
run-cache keeps every stage that ever ran, so that a second time only what has changed runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import yaml

from jukesep.base import params

# What an experiment would not see if it were not committed.
CODE = ("jukesep", "stages", "conf", "dvc.yaml", "params.yaml")
POLL = 15.0  # seconds


def run(wanted: Mapping[str, Sequence[str]], jobs: int) -> None:
    """Run the experiments (name -> overrides) that are not done, `jobs` at a time.

    They are queued and run in folders of their own: the workspace stays as it is. Exits with a
    message if the working tree has changes that an experiment would not see, or if one fails.
    """
    missing = {name: options for name, options in wanted.items() if not done(name, options)}
    if not missing:
        return
    if _output("git", "status", "--porcelain", "--", *CODE):
        sys.exit("error: uncommitted changes in the code or the parameters; commit them first.")
    old = [name for name in missing if _revision(name)]
    if old:
        subprocess.run(["dvc", "exp", "remove", *old], check=True)
    # A task of an earlier try that failed would be taken for this one's.
    tasks = [line for line in _tasks() if not missing.keys().isdisjoint(line.split())]
    # One whose worker has died with the machine is listed as running until it is ended.
    if running := [line.split()[0] for line in tasks if line.endswith("Running")]:
        subprocess.run(["dvc", "queue", "kill", *running], check=True)
    if tasks:
        ids = [line.split()[0] for line in tasks]
        subprocess.run(["dvc", "queue", "remove", *ids], check=True)
    for name, overrides in missing.items():
        options = [word for override in overrides for word in ("-S", override)]
        subprocess.run(["dvc", "exp", "run", "--queue", "--name", name, *options], check=True)
    # Side by side, more threads than cores would slow all of them.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    subprocess.run(["dvc", "queue", "start", "-j", str(jobs)], check=True, env=environment)
    _wait(missing)


def done(name: str, overrides: Sequence[str]) -> bool:
    """Whether the experiment is there, of today's parameters, and of the code of dvc.lock."""
    revision = _revision(name)
    if revision is None:
        return False
    if _output("git", "show", f"{revision}:params.yaml") != params.compose(list(overrides)):
        return False
    committed = _code(Path("dvc.lock").read_text(encoding="utf-8"))
    ran = _code(_output("git", "show", f"{revision}:dvc.lock"))
    return all(committed.get(stage) == code for stage, code in ran.items())


def _code(lock: str) -> dict[str, dict[str, str]]:
    """Stage -> path -> md5 of the code that a dvc.lock names."""
    return {
        name: {
            dep["path"]: dep["md5"]
            for dep in stage["deps"]
            if dep["path"].startswith(("jukesep/", "stages/"))
        }
        for name, stage in yaml.safe_load(lock)["stages"].items()
    }


def read(name: str, path: str) -> dict[str, float]:
    """A metrics file of an experiment, by its path in the project."""
    return json.loads(_output("git", "show", f"{_revision(name)}:{path}"))


def _wait(names: Collection[str]) -> None:
    start = time.monotonic()
    # A task that is being handed to a worker is in no list for a moment: only the end counts.
    while waiting := [name for name in names if _revision(name) is None]:
        for line in _tasks():
            for name in waiting:
                if name in line.split() and "Failed" in line:
                    sys.exit(f"error: {name} failed; `dvc queue logs {name}` says why.")
        finished, seconds = len(names) - len(waiting), time.monotonic() - start
        left = f", about {seconds / finished * len(waiting) / 60:.0f} min left" if finished else ""
        print(f"{finished} of {len(names)} experiments, {seconds / 60:.0f} min{left}", flush=True)
        time.sleep(POLL)


def _tasks() -> list[str]:
    """The queue, a task a line, the first word its id."""
    return _output("dvc", "queue", "status").splitlines()


def _revision(name: str) -> str | None:
    """The reference of an experiment, if it is there."""
    for line in _output("git", "for-each-ref", "refs/exps", "--format=%(refname)").splitlines():
        if line.endswith(f"/{name}") and "/exec/" not in line:
            return line
    return None


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
