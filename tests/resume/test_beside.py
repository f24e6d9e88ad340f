"""The items of a stage that train side by side, each with its result in its own stage."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import SMALL, prepare_songs

from jukesep.base import params, paths
from jukesep.base.errors import UserError
from jukesep.pipeline import train as experiment
from jukesep.resume import beside
from jukesep.resume.status import trainings

ROOT = Path(__file__).parents[2]
needs_cores = pytest.mark.skipif(beside.cores() == 1, reason="one core trains one item at a time")
ITEMS = [(stem, init) for stem in ("drums", "bass") for init in ("pretrained", "scratch")]


@pytest.fixture
def started(monkeypatch):
    """What would have been started beside the process of the first item; nothing is."""
    commands = []

    class Process:
        def __init__(self, command, env):
            commands.append((command[-2:], env[beside.VARIABLE], env["JUKESEP_ROW"]))

        def wait(self):
            pass

        terminate = wait

    monkeypatch.setattr(beside.subprocess, "Popen", Process)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", type("", (), {"name": "stages.x"}))
    monkeypatch.delenv(beside.VARIABLE, raising=False)
    return commands


def _params(*overrides):
    composed = params.compose([*SMALL, "device=cpu", *overrides], ROOT / "conf")
    return params.Params.model_validate(yaml.safe_load(composed))


@pytest.mark.parametrize(
    ("cores", "threads", "own", "others"),
    [
        (2, 1, 0, [1]),
        (2, 1, 1, []),  # trained beside the first one
        (2, 1, 2, [3]),
        (3, 1, 0, [1, 2]),
        (3, 1, 3, []),
        (8, 1, 0, [1, 2, 3]),
        (8, 4, 0, [1]),
        (4, 4, 0, []),
        (1, 1, 0, []),
        (8, 0, 0, []),  # one training uses all cores
    ],
)
def test_items_train_in_groups_of_as_many_as_there_are_cores_for(
    monkeypatch, started, cores, threads, own, others
):
    monkeypatch.setattr(beside, "cores", lambda: cores)
    monkeypatch.setattr(sys, "argv", ["x", *ITEMS[own]])
    with beside.next_items(_params(f"threads={threads}"), ITEMS):
        pass
    assert started == [
        (list(ITEMS[other]), "child", str(row)) for row, other in enumerate(others, start=1)
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JUKESEP_BESIDE", "off"),
        ("JUKESEP_BESIDE", "child"),
        ("JUKESEP_NPROC", "2"),
        ("TORCHELASTIC_RUN_ID", "1"),
    ],
)
def test_one_trains_alone_if_asked_or_in_several_processes(monkeypatch, started, name, value):
    monkeypatch.setattr(beside, "cores", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["x", *ITEMS[0]])
    monkeypatch.setenv(name, value)
    with beside.next_items(_params(), ITEMS):
        pass
    assert started == []


def test_another_value_is_named(monkeypatch, started):
    monkeypatch.setattr(sys, "argv", ["x", *ITEMS[0]])
    monkeypatch.setenv(beside.VARIABLE, "no")
    message = "JUKESEP_BESIDE=no: no such value; set it to auto or off"
    with pytest.raises(UserError, match=message), beside.next_items(_params(), ITEMS):
        pass


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project folder with songs and initial weights."""
    folder = tmp_path_factory.mktemp("made")
    prepare_songs(folder, lambda split, stem: 0.1, {"train": 1, "valid": 1, "test": 1})
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    changes = [*SMALL, "device=cpu", "inits=[scratch]"]
    (folder / "params.yaml").write_text(params.compose(changes, ROOT / "conf"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment.weights(params.load(), "scratch")
    return folder


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """A copy of it in which bass was trained beside drums."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("trained") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _stage("drums", "scratch")
    return folder


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of the project folder, entered."""
    folder = shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def _stage(*item, **environment):
    command = [sys.executable, "-m", "stages.stage1", *item]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


TAKEN = "stage1 bass scratch: was trained beside another one; takes its results."


def _results(*stems):
    return [
        (paths.run("stage1", stem, "scratch") / name).read_bytes()
        for stem in stems
        for name in ("checkpoints/2.pt", "log.csv")
    ]


@needs_cores
def test_a_training_beside_another_one_has_the_same_result(project, trained, monkeypatch):
    """And is trained once: its own stage takes the result."""
    _stage("drums", "scratch", JUKESEP_BESIDE="off")
    assert [one.progress["title"] for one in trainings()] == ["stage1 drums scratch"]
    assert TAKEN not in _stage("bass", "scratch", JUKESEP_BESIDE="off")
    alone = _results("drums", "bass")
    monkeypatch.chdir(shutil.copytree(trained, project / "trained"))
    conditions = {one.progress["title"]: one.condition for one in trainings()}
    assert conditions["stage1 bass scratch"] == "trained"
    assert not paths.run("stage1", "bass", "scratch").exists()
    out, item = paths.run("stage1", "bass", "scratch"), {"stem": "bass", "init": "scratch"}
    assert beside.take_results(params.load(), "stage1", item, out)
    assert _results("drums", "bass") == alone


def _damage(folder, what):
    """Leave a folder of complete results as something else left it."""
    if what == "a checkpoint":
        (folder / "checkpoints/2.pt").write_bytes(b"damaged")
    elif what == "the record":
        (folder / "results.json").unlink()
    elif what == "the parameters":
        described = json.loads((folder / "identity.json").read_text())
        described["parameters"]["stage1.steps"] = 3
        (folder / "identity.json").write_text(json.dumps(described))


@needs_cores
@pytest.mark.parametrize("damaged", ["nothing", "a checkpoint"])
def test_results_are_taken_without_pytorch_if_they_are_whole(
    trained, tmp_path, monkeypatch, damaged
):
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "project"))
    (folder,) = (one.folder for one in trainings() if one.condition == "trained")
    expected = (folder / "checkpoints/2.pt").read_bytes()
    _damage(folder, damaged)
    said = _stage("bass", "scratch", PYTHONPROFILEIMPORTTIME="1")
    assert (" torch\n" in said) == (TAKEN not in said) == (damaged != "nothing")
    out = paths.run("stage1", "bass", "scratch")
    assert (out / "checkpoints/2.pt").read_bytes() == expected
    (after,) = (one for one in trainings() if one.folder == folder)
    assert after.condition == "finished"
    kept = {path.name for path in folder.iterdir()}
    assert not kept & {"results.json", "log.csv", "checkpoints"}
    assert not any(name.startswith("state-") for name in kept)


@needs_cores
@pytest.mark.parametrize("damaged", ["a checkpoint", "the record", "the parameters"])
def test_results_that_are_not_whole_are_left_to_the_training(
    trained, tmp_path, monkeypatch, damaged
):
    monkeypatch.chdir(shutil.copytree(trained, tmp_path / "project"))
    (folder,) = (one.folder for one in trainings() if one.condition == "trained")
    _damage(folder, damaged)
    out = paths.run("stage1", "bass", "scratch")
    item = {"stem": "bass", "init": "scratch"}
    assert not beside.take_results(params.load(), "stage1", item, out)
    assert not out.exists()
    (after,) = (one for one in trainings() if one.folder == folder)
    assert after.condition == "trained"


@pytest.mark.usefixtures("project")
def test_what_was_finished_before_is_not_trained_beside():
    _stage("bass", "scratch")
    (before,) = trainings()
    said = _stage("bass", "scratch", JUKESEP_BESIDE="child")
    (after,) = trainings()
    assert (after.condition, said) == ("finished", "")
    assert after.progress == before.progress
