"""Kill trainings at random moments, start them again, and compare what they end with.

    uv run python -m benchmarks.kills                      # 100 kills over both stages; minutes
    uv run python -m benchmarks.kills --kills 20 --jobs 2 --seed 7

Runs the pipeline's own commands, `python -m stages.stage1` and `stages.stage2`, in a temporary
project of scale=tiny with more steps. A training is killed several times (SIGKILL, SIGTERM, SIGINT
in turn) at a moment drawn from the whole of its life, from the start of Python to its last write,
and sometimes its newest save is cut short meanwhile, as a loss of power would; then it is left to
end. Every file it ends with, and its last save (weights, codebook, averages, optimiser), must be
those of a training that was never stopped, bit for bit. Fails at the first that are not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from jukesep.base import params as parameters
from jukesep.base.errors import UserError, reported
from jukesep.base.files import write_text
from jukesep.base.progress import bar

ROOT = Path(__file__).parents[1]
STEM, INIT = "vocals", "scratch"
STAGES = ("stage1", "stage2")
STEPS = 200  # of a training: some seconds
SAVE_MINUTES = 0.002  # seconds are long here
A_TRAINING = 5  # kills before one is left to end
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 120.0  # seconds


@dataclass
class Tally:
    """What happened to the trainings of one run of this command."""

    kills: Counter[str] = field(default_factory=Counter)
    """By signal and by how far the training was."""
    damaged: int = 0
    resumed: int = 0
    trainings: int = 0

    def add(self, other: Tally) -> None:
        """Count what another has counted."""
        self.kills += other.kills
        self.damaged += other.damaged
        self.resumed += other.resumed
        self.trainings += other.trainings


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, compare, print the tally."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at a time")
    parser.add_argument("--steps", type=int, default=STEPS, help="of a training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        tally = stress(Path(name), options.kills, options.jobs, options.steps, options.seed)
    print(f"{sum(tally.kills.values())} kills of {tally.trainings} trainings:")
    for kind, count in sorted(tally.kills.items()):
        print(f"  {count:4} {kind}")
    print(f"{tally.resumed} starts went on from a save, {tally.damaged} saves were damaged.")
    print("Every training ended with the files and the last save of one never stopped.")


def stress(folder: Path, kills: int, jobs: int, steps: int, seed: int) -> Tally:
    """Kill trainings below `folder` at least `kills` times. UserError if one ends differently."""
    project = prepare(folder / "project", steps)
    lives = {stage: whole_life(project, stage) for stage in STAGES}
    wanted = {stage: ending(project, stage) for stage in STAGES}
    rounds = -(-kills // (A_TRAINING * len(STAGES)))
    chosen = random.Random(seed)
    todo = [(stage, chosen.random()) for _ in range(rounds) for stage in STAGES]
    total = Tally()

    def one(job: tuple[int, tuple[str, float]]) -> Tally:
        number, (stage, draw) = job
        copy = folder / f"{number}-{stage}"
        shutil.copytree(project, copy)
        tally = killed(copy, stage, lives[stage], random.Random(draw))
        found = ending(copy, stage)
        if found != wanted[stage]:
            names = dict(set(found.items()) ^ set(wanted[stage].items()))
            raise UserError(
                f"{stage}, training {number}, seed {seed}: it ended with another {sorted(names)}."
            )
        shutil.rmtree(copy)
        return tally

    with ThreadPoolExecutor(jobs) as pool:
        for tally in bar(
            pool.map(one, enumerate(todo)), total=len(todo), desc="kills", unit="training"
        ):
            total.add(tally)
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


def whole_life(project: Path, stage: str) -> float:
    """Seconds of a training that is never stopped."""
    start = time.monotonic()
    run(project, stage, STEM, INIT)
    return time.monotonic() - start


def killed(project: Path, stage: str, life: float, chosen: random.Random) -> Tally:
    """Kill a training A_TRAINING times, then let it end."""
    tally = Tally(trainings=1)
    clear(project, stage)
    while sum(tally.kills.values()) < A_TRAINING:
        process = begin(project, stage, STEM, INIT)
        # Most of a life goes by before the first step: most of the moments are after it.
        if chosen.random() < 0.75:
            _wait_for_training(project, stage, process)
            moment = chosen.uniform(0, 0.3 * life)
        else:
            moment = chosen.uniform(0, life)
        number: signal.Signals | None = chosen.choice(SIGNALS)
        try:
            process.wait(moment)
            number = None
        except subprocess.TimeoutExpired:
            trains = _progress(project, stage) == process.pid
            process.send_signal(number or signal.SIGKILL)
        said = finish(process)
        tally.resumed += "goes on after step" in said
        _check(process.returncode, number, said)
        if number is not None and process.returncode != 0:
            tally.kills[f"{number.name}, {'training' if trains else 'before its start'}"] += 1
        if process.returncode == 0:  # it had ended, or had only to clear up
            clear(project, stage)
        elif chosen.random() < 0.25:
            tally.damaged += damage(project, stage, chosen)
    tally.resumed += "goes on after step" in run(project, stage, STEM, INIT)
    return tally


def _check(status: int, number: signal.Signals | None, said: str) -> None:
    """A training ends well, or by the signal, and says so in a line."""
    allowed = {0}
    if number is not None:
        allowed |= {-number, 128 + number}
    if number == signal.SIGINT:
        allowed |= {1}  # numpy, interrupted while it is imported, says something else
    if status not in allowed or ("Traceback" in said and status == 128 + signal.SIGTERM):
        raise UserError(f"ended with status {status}:\n{said}")


def clear(project: Path, stage: str) -> None:
    """Forget a training: its results, and what it goes on from."""
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
    out = project / "runs" / stage
    files = {path.relative_to(project).as_posix(): path for path in out.rglob("*")}
    found = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
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


def _progress(project: Path, stage: str) -> int | None:
    from jukesep.resume.folder import read_progress

    pids = [read_progress(f).get("pid") for f in (project / "trainings").glob(f"{stage}-*")]
    return pids[0] if pids else None


def _wait_for_training(project: Path, stage: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        if _progress(project, stage) == process.pid:
            return
        time.sleep(0.01)


if __name__ == "__main__":
    with reported():
        main()
