"""Kill trainings at random moments, start them again, and compare the results.

    uv run python -m benchmarks.kills                      # 100 kills over both stages; minutes
    uv run python -m benchmarks.kills --kills 20 --seed 7

Runs the pipeline's own commands, `python -m stages.stage1` and `stages.stage2`, in a temporary
project of scale=tiny with more steps. A training is killed several times (SIGKILL, SIGTERM, SIGINT)
at a moment drawn from the whole of its life, from the start of Python to its last write. Sometimes
its newest save is also cut short, as by a loss of power. Then it is left to end. Every file, and
the last save (weights, codebook, averages, optimiser), must equal those of a training that was
never stopped, to the bit. The first difference is an error.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import measuring
from benchmarks.measuring import ROOT
from jukesep.base import params as parameters
from jukesep.base.errors import UserError, reported
from jukesep.base.files import write_text
from jukesep.base.progress import bar

RESUMED = re.compile(r": resumes after step")  # what a training prints when it starts
RESUMES, DAMAGED = "starts resumed from a save", "saves were damaged"
STEM, INIT = "vocals", "scratch"
STAGES = ("stage1", "stage2")
STEPS = 200  # of a training: some seconds
SAVE_MINUTES = 0.002  # seconds are long here
A_TRAINING = 5  # kills before one is left to end
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 120.0  # seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, compare, print the tally."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        tally = stress(Path(name), options.kills, options.seed)
    for kind, count in sorted(tally.items()):
        print(f"{count:4} {kind}")
    print("Every training ended with the files and the last save of one never stopped.")


def stress(folder: Path, kills: int, seed: int) -> Counter[str]:
    """Kill trainings below `folder` at least `kills` times, and count what happened.

    UserError if one ends differently.
    """
    project = prepare(folder / "project", STEPS)
    lives = {s: measuring.timed(partial(run, project, s, STEM, INIT))[0] for s in STAGES}
    wanted = {stage: ending(project, stage) for stage in STAGES}
    chosen, total = random.Random(seed), Counter[str]()
    rounds = -(-kills // (A_TRAINING * len(STAGES)))
    for number in bar(range(rounds), desc="kills", unit="training of each stage"):
        for stage in STAGES:
            copy = shutil.copytree(project, folder / f"{number}-{stage}")
            total += killed(copy, stage, lives[stage], chosen)
            differ = dict(set(ending(copy, stage).items()) ^ set(wanted[stage].items()))
            if differ:
                where = f"{stage}, training {number}, seed {seed}"
                raise UserError(f"{where}: {', '.join(sorted(differ))} differ at the end.")
            shutil.rmtree(copy)
    return total


def prepare(folder: Path, steps: int, *overrides: str) -> Path:
    """A folder with the songs, initial weights and parameters of long trainings at scale=tiny."""
    configure(folder, steps, *overrides)
    run(folder, "prepare")
    run(folder, "weights", INIT)
    return folder


def configure(folder: Path, steps: int, *overrides: str) -> None:
    """Write the parameters of a folder."""
    recipe = {"steps": steps, "log_every": 7, "valid_every": 23, "workers": 1}
    settings = [f"{stage}.{name}={recipe[name]}" for stage in STAGES for name in recipe]
    settings += [f"stage2.checkpoints=[{steps // 3},{steps}]", f"save_minutes={SAVE_MINUTES}"]
    settings = ["scale=tiny", f"stem={STEM}", *settings, *overrides]
    write_text(folder / "params.yaml", parameters.compose(settings, ROOT / "conf"))


def killed(project: Path, stage: str, life: float, chosen: random.Random) -> Counter[str]:
    """Kill a training A_TRAINING times, then let it end."""
    tally, kills = Counter({"trainings": 1}), 0
    clear(project, stage)
    while kills < A_TRAINING:
        process = begin(project, stage, STEM, INIT)
        # Most of a life goes by before the first step: most of the moments are after it.
        if chosen.random() < 0.75:
            end = time.monotonic() + PATIENCE
            while process.poll() is None and not _trains(project, stage, process):
                if time.monotonic() > end:
                    break
                time.sleep(0.01)
            moment = chosen.uniform(0, 0.3 * life)
        else:
            moment = chosen.uniform(0, life)
        number: signal.Signals | None = chosen.choice(SIGNALS)
        try:
            process.wait(moment)
            number = None
        except subprocess.TimeoutExpired:
            trains = _trains(project, stage, process)
            process.send_signal(number or signal.SIGKILL)
        said = finish(process)
        tally[RESUMES] += bool(RESUMED.search(said))
        _check(process.returncode, number, said)
        if number is not None and process.returncode != 0:
            tally[f"kills by {number.name}, {'training' if trains else 'before its start'}"] += 1
            kills += 1
        if process.returncode == 0:  # it had ended, or had only to clear up
            clear(project, stage)
        elif chosen.random() < 0.25:
            tally[DAMAGED] += damage(project, stage, chosen)
    tally[RESUMES] += bool(RESUMED.search(run(project, stage, STEM, INIT)))
    return tally


def _check(status: int, number: signal.Signals | None, said: str) -> None:
    """A training ends well, or by the signal with a message of one line."""
    allowed = {0}
    if number is not None:
        allowed |= {-number, 128 + number}
    if number == signal.SIGINT:
        allowed |= {1}  # numpy, interrupted while it is imported, says something else
    if status not in allowed or ("Traceback" in said and status == 128 + signal.SIGTERM):
        raise UserError(f"ended with status {status}:\n{said}")


def clear(project: Path, stage: str) -> None:
    """Delete a training's results and its saves."""
    shutil.rmtree(project / "runs" / stage, ignore_errors=True)
    for folder in (project / "trainings").glob(f"{stage}-*"):
        shutil.rmtree(folder)


def damage(project: Path, stage: str, chosen: random.Random) -> bool:
    """Cut the newest save short, if there is one."""
    found = sorted((project / "trainings").glob(f"{stage}-*/state-*.state"))
    if not found:
        return False
    content = found[-1].read_bytes()
    found[-1].write_bytes(content[: chosen.randrange(len(content))])
    return True


def ending(project: Path, stage: str) -> dict[str, str]:
    """The digest of every file that a training ends with, and of its last save."""
    found = {
        path.relative_to(project).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (project / "runs" / stage).rglob("*")
        if path.is_file()
    }
    (log,) = (project / "trainings").glob(f"{stage}-*/training.log")
    saves = [line for line in log.read_text(encoding="utf-8").splitlines() if " saved " in line]
    # Its step, and a fingerprint of weights, codebook, averages and optimiser.
    return {**found, "last save": saves[-1].partition(" saved ")[2]}


def begin(project: Path, stage: str, *item: str, **environment: str) -> subprocess.Popen[str]:
    """A stage's command, with this repository's code, in a folder; environment variables."""
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *item],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a process said, once it has ended."""
    said, _ = process.communicate(timeout=PATIENCE)
    return said


def run(project: Path, stage: str, *item: str, **environment: str) -> str:
    """Run a stage to its end. UserError if it fails."""
    process = begin(project, stage, *item, **environment)
    said = finish(process)
    if process.returncode:
        raise UserError(f"{stage} {' '.join(item)} failed:\n{said}")
    return said


def _trains(project: Path, stage: str, process: subprocess.Popen[str]) -> bool:
    """Whether this process has begun to train."""
    from jukesep.resume.folder import read_progress

    folders = (project / "trainings").glob(f"{stage}-*")
    return any(read_progress(folder).get("pid") == process.pid for folder in folders)


if __name__ == "__main__":
    with reported():
        main()
