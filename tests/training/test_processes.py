"""Trainings as real processes: killed, started again, several at once."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import kills
from jukesep.model import jukebox
from jukesep.resume.folder import read_progress
from jukesep.resume.status import trainings

pytestmark = pytest.mark.pipeline

STEM, INIT = kills.STEM, kills.INIT
STEPS = 20
TOGETHER = {"JUKESEP_NPROC": "2"}
# After 20 steps, of weights whose largest are about 0.5: what rounding has grown to.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
RESTORED = ("codebook.k_sum", "codebook.k_elem")  # not in a file: multiples of the codes


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A folder in which one process has trained both stages: 20 steps, of 4 segments each."""
    batch = [f"{stage}.batch=4" for stage in kills.STAGES]
    project = kills.prepare(tmp_path_factory.mktemp("processes") / "alone", STEPS, *batch)
    for stage in kills.STAGES:
        kills.run(project, stage, STEM, INIT)
    return project


@pytest.fixture
def project(alone, tmp_path):
    """As `alone`."""
    return shutil.copytree(alone, tmp_path / "project")


LONGER = 600  # steps: seconds, in which a test can act


@pytest.fixture
def longer(project):
    """As `alone`, but stage 2 is longer, and not trained yet."""
    kills.configure(project, LONGER, "stage1.steps=20", "stage2.batch=4")
    kills.clear(project, "stage2")
    return project


def _weights(project, stage):
    (path,) = (project / f"runs/{stage}/{STEM}_{INIT}/checkpoints").glob(f"{STEPS}.pt")
    load = jukebox.load_jukebox if stage == "stage1" else jukebox.load_encoder
    return load(path).state_dict()


def _same(one, other, stage):
    wanted = _weights(one, stage)
    for name, value in _weights(other, stage).items():
        if name not in RESTORED:
            torch.testing.assert_close(value, wanted[name], **CLOSE)


def _log(project, stage):
    return (project / f"runs/{stage}/{STEM}_{INIT}/log.csv").read_text().splitlines()


def _until_it_trains(project, stage, process):
    """Wait for the first step that is told of."""
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        found = [read_progress(f) for f in (project / "trainings").glob(f"{stage}-*")]
        if any(p.get("state") == "running" and p.get("step", 0) for p in found):
            return
        time.sleep(0.01)
    pytest.fail(f"{stage} did not train: {kills.finish(process)}")


@pytest.mark.parametrize("stage", kills.STAGES)
def test_a_training_killed_at_random_moments_ends_with_the_same_bits(
    alone, project, stage, monkeypatch
):
    monkeypatch.setattr(kills, "A_TRAINING", 2)
    tally = kills.killed(project, stage, 3.0, random.Random(stage))
    assert sum(n for kind, n in tally.items() if kind.startswith("kills")) == 2
    assert kills.ending(project, stage) == kills.ending(alone, stage)


def test_two_processes_compute_what_one_does(alone, project):
    """Of stage 1; `test_two_nodes_train_together` has stage 2."""
    kills.clear(project, "stage1")
    said = kills.run(project, "stage1", STEM, INIT, JUKESEP_NPROC="3")
    assert "stage1.batch=4 cannot be shared by 3 processes (JUKESEP_NPROC): using 2." in said
    assert said.count("100%") == 1  # one progress line, not one a process
    (run,) = (one for one in trainings(project / "trainings") if "stage1" in one.folder.name)
    assert run.progress["processes"] == 2
    assert len(_log(project, "stage1")) == len(_log(alone, "stage1"))
    _same(alone, project, "stage1")


def test_an_interrupted_training_goes_on_with_another_number_of_processes(longer):
    both = kills.begin(longer, "stage2", STEM, INIT, **TOGETHER)
    _until_it_trains(longer, "stage2", both)
    both.send_signal(signal.SIGTERM)
    said = kills.finish(both)
    assert both.returncode == 128 + signal.SIGTERM, said
    assert said.count("stopped by SIGTERM") == 1, said
    assert "Traceback" not in said
    kills.configure(longer, LONGER, "stage1.steps=20", "stage2.batch=4", "save_minutes=60")
    said = kills.run(longer, "stage2", STEM, INIT)
    assert "resumes after step" in said
    steps = [int(row.split(",")[0]) for row in _log(longer, "stage2")[1:]]
    assert steps == sorted({*range(7, LONGER + 1, 7), *range(23, LONGER + 1, 23), LONGER})


def test_processes_that_dvc_has_left_behind_save_and_end(longer):
    """Nobody would take what they make, and a new `dvc repro` would find it being trained."""
    kills.configure(longer, 5000, "stage1.steps=20", "stage2.batch=4")
    starts = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    dvc = subprocess.Popen(
        [sys.executable, "-c", starts, sys.executable, "-m", "stages.stage2", STEM, INIT],
        cwd=longer,
        env={**os.environ, "PYTHONPATH": str(kills.ROOT), "DVC_STAGE": "stage2", **TOGETHER},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _until_it_trains(longer, "stage2", dvc)
    dvc.kill()
    assert "stopped by SIGTERM" in kills.finish(dvc)  # read until the last of them has ended
    (run,) = (one for one in trainings(longer / "trainings") if "stage2" in one.folder.name)
    assert run.condition == "interrupted"
    assert run.can_resume


def test_a_process_that_dies_ends_all_of_them_and_is_named(longer):
    both = kills.begin(longer, "stage2", STEM, INIT, **TOGETHER)
    _until_it_trains(longer, "stage2", both)
    children = _children(both.pid)
    assert len(children) == 2
    start = time.monotonic()
    os.kill(children[1], signal.SIGKILL)
    said = kills.finish(both)
    assert time.monotonic() - start < 20
    assert both.returncode == 1
    assert "was killed by SIGKILL; the others were stopped" in said
    assert "Traceback" not in said, said
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_song_that_one_process_cannot_read_is_named(longer):
    for path in (longer / "data/prepared/songs/train").rglob("mixture.wav"):
        path.write_bytes(path.read_bytes()[:2000])
    both = kills.begin(longer, "stage2", STEM, INIT, **TOGETHER)
    said = kills.finish(both)
    assert both.returncode == 1
    assert "mixture.wav: " in said
    assert "Traceback" not in said, said


def test_two_nodes_train_together(alone, project):
    """Two torchruns, as on two machines, by the line of the README."""
    kills.clear(project, "stage2")
    _torchruns(project, project)
    _same(alone, project, "stage2")


def _torchruns(*projects):
    """A torchrun of stage 2 in each folder, together one training; what they said."""
    line = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(len(projects)),
        "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:29611",
        "--rdzv-id", "test", "-m", "stages.stage2", STEM, INIT,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(kills.ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(line, cwd=p, env=environment, **pipes) for p in projects]
    return [node.communicate(timeout=120)[0] for node in nodes]


def _children(pid):
    """Processes started by one, in the order of their rank."""
    listed = subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(pid)], text=True)
    return sorted(int(child) for child in listed.split())
