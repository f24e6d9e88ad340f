"""`jukesep status` and `jukesep clean`: what there is of trainings, and what may go."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from tiny import make_recipe, make_run, matching, run_training
from typer.testing import CliRunner

from jukesep import cli
from jukesep.base import files, paths
from jukesep.base.errors import Interrupted, UserError
from jukesep.resume import status
from jukesep.training.state import State

pytestmark = pytest.mark.usefixtures("entered")


def _jukesep(*words, answer=None, ends=0):
    done = CliRunner().invoke(cli.app, words, input=answer)
    assert done.exit_code == ends, done.output
    return done.output


def _train(songs, name, steps=3, loss=None):
    """Train; `loss(run, step)` happens in each step."""
    run, task = make_run(name, save_minutes=0.0), matching()
    given = task.loss

    def lossy(batch, step):
        if loss:
            loss(run, step)
        return given(batch, step)

    task.loss = lossy
    run_training(task, songs, name, make_recipe(steps=steps), [], run)


def _interrupted(songs, name):
    def stop(run, step):
        run._signals._received = 15 if step == 1 else None

    with pytest.raises(Interrupted):
        _train(songs, name, loss=stop)


def _failed(songs, name):
    def fail(_, step):
        if step == 1:
            raise UserError("songs/x.wav: no such file.")

    with pytest.raises(UserError):
        _train(songs, name, loss=fail)


@pytest.fixture
def four(songs):
    """A finished training, an interrupted one, a failed one; and one running, with what it is."""
    _train(songs, "done")
    _interrupted(songs, "stopped")
    _failed(songs, "broken")
    run = make_run("going")
    with run:
        run.begin(0, 2000, processes=2)
        run.step, run._began = 1000, time.monotonic() - 100.0
        run._progress(state="running")
        yield run


def _rows(output):
    """Of the table, by the second word of the title; what failed is told below it."""
    lines = [line for line in output.splitlines() if line.startswith("test ")]
    return {line.split()[1]: line for line in lines if ": " not in line}


def _age(name, days):
    """The last news of a training is so many days old."""
    (path,) = Path("trainings").glob(f"test-{name}-*/progress.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "updated": time.time() - days * 24 * 3600}))


# --- status -----------------------------------------------------------------------------------


def test_without_trainings_the_folder_is_named():
    folder = Path("trainings").resolve()
    assert _jukesep("status") == f"No unfinished trainings in {folder}.\n"
    assert json.loads(_jukesep("status", "--json")) == []
    assert _jukesep("clean") == f"Nothing to delete in {folder}.\n"
    assert not Path("trainings").exists()


def test_a_table_shows_what_runs_and_what_was_interrupted(four):
    output = _jukesep("status")
    assert output.splitlines()[0].split() == [
        "training", "step", "steps/s", "left", "saved", "device", "last", "news",
    ]  # fmt: skip
    rows = _rows(output)
    assert list(rows) == ["stopped", "broken", "going"]  # the latest last
    assert rows["stopped"].split()[2:6] == ["interrupted", "2/3", "2", "cpu"]
    assert rows["broken"].split()[2:6] == ["failed", "1/3", "1", "cpu"]
    assert rows["going"].split("  ")[0] == "test going"
    for shown in ("running", "1000/2000", " 10 ", "2 min", "cpu x 2", " s ago"):
        assert shown in rows["going"]
    assert output.splitlines()[-1] == "test broken: songs/x.wav: no such file."


def test_a_resumed_training_that_fails_before_it_begins_keeps_its_step(songs, monkeypatch):
    _interrupted(songs, "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(State, "load", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _train(songs, "stopped")
    row = _rows(_jukesep("status"))["stopped"].split()
    assert row[2:6] == ["failed", "2/3", "2", "cpu"]


def test_finished_ones_are_shown_when_asked_for(four):
    rows = _rows(_jukesep("status", "--all"))
    assert list(rows) == ["done", "stopped", "broken", "going"]
    assert rows["done"].split()[2:5] == ["finished", "3/3", "cpu"]  # nothing saved to go on from


def test_json_has_all_that_is_known(four):
    found = {one["title"]: one for one in json.loads(_jukesep("status", "--json", "--all"))}
    conditions = {title: (one["condition"], one["can_resume"]) for title, one in found.items()}
    assert conditions == {
        "test done": ("finished", False),
        "test stopped": ("interrupted", True),
        "test broken": ("failed", True),
        "test going": ("running", False),
    }
    going = found["test going"]
    assert going["pid"] == os.getpid()
    assert (going["step"], going["steps"], going["processes"]) == (1000, 2000, 2)
    assert going["steps_per_second"] == pytest.approx(10, rel=0.01)
    assert going["seconds_left"] == pytest.approx(100, rel=0.01)
    assert going["runs_in"] == str(Path.cwd())
    stopped = found["test stopped"]
    folder = Path(stopped["folder"])
    assert stopped["bytes"] == sum(path.stat().st_size for path in folder.rglob("*.*")) > 1000
    assert stopped["saved_step"] == 2
    assert stopped["message"].startswith("test stopped: stopped by SIGTERM after step 2 of 3")
    assert len(json.loads(_jukesep("status", "--json"))) == 3


def test_one_that_was_killed_is_interrupted_whatever_it_said_last(songs):
    """Nothing but its lock tells that it has gone."""
    _interrupted(songs, "killed")
    (path,) = Path("trainings").glob("*/progress.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "running"}))
    (found,) = json.loads(_jukesep("status", "--json"))
    assert (found["condition"], found["can_resume"]) == ("interrupted", True)


@pytest.mark.parametrize("content", ["", "{", "[1]", "\0" * 100, '{"updated": "x"}'])
def test_a_damaged_file_of_progress_is_no_reason_to_fail(songs, content):
    _interrupted(songs, "stopped")
    (path,) = Path("trainings").glob("*/progress.json")
    path.write_text(content)
    output = _jukesep("status")
    assert path.parent.name in output
    assert "?/?" in output
    assert "Deleted 1" in _jukesep("clean", "--yes")


def test_files_that_vanish_meanwhile_are_no_reason_to_fail(songs, monkeypatch):
    _interrupted(songs, "stopped")
    is_file = Path.is_file

    def then_gone(path):
        there = is_file(path)
        if path.name == "timing.csv":
            path.unlink()
        return there

    monkeypatch.setattr(Path, "is_file", then_gone)
    assert "interrupted" in _jukesep("status")


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_experiments_of_dvc_show_and_keep_the_trainings_of_the_project(
    songs, entered, monkeypatch, below
):
    _interrupted(songs, "stopped")
    place = entered / ".dvc/tmp/exps/tmpabcd" / below
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    assert paths.trainings() == entered / "trainings"
    (found,) = json.loads(_jukesep("status", "--json"))
    assert Path(found["folder"]).parent == entered / "trainings"
    assert make_run("stopped").folder == Path(found["folder"])
    assert not list(place.iterdir())


def test_a_folder_that_only_resembles_those_of_experiments_is_none(entered, monkeypatch):
    place = entered / ".dvc/tmp/other"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    assert paths.trainings() == Path("trainings")


def test_trainings_can_lie_elsewhere(songs, entered, monkeypatch):
    monkeypatch.setenv(paths.VARIABLE, str(entered / "else where"))
    _interrupted(songs, "stopped")
    assert not Path("trainings").exists()
    (found,) = json.loads(_jukesep("status", "--json"))
    assert Path(found["folder"]).parent == entered / "else where"
    assert "Deleted 1" in _jukesep("clean", "--yes")
    monkeypatch.setenv(paths.VARIABLE, "")
    assert paths.trainings() == Path("trainings")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"), (-1, "0 s"), (0, "0 s"), (59.4, "59 s"), (60, "1 min"),
        (3569, "59 min"), (3599, "1 h 00 min"), (3600, "1 h 00 min"), (11100, "3 h 05 min"),
        (47.6 * 3600, "47 h 36 min"), (48 * 3600, "2 d 00 h"), (52.2 * 3600, "2 d 04 h"),
    ],
)  # fmt: skip
def test_durations_are_for_people(seconds, text):
    assert status.duration(seconds) == text


# --- clean ------------------------------------------------------------------------------------


def _left():
    return sorted(path.name.split("-")[1] for path in Path("trainings").iterdir())


def test_clean_shows_what_it_would_delete_and_asks(four):
    output = _jukesep("clean", answer="n\n")
    assert list(_rows(output)) == ["done", "stopped", "broken"]
    assert "Deleted" not in output
    assert _left() == ["broken", "done", "going", "stopped"]
    total = sum(one.size for one in status.trainings() if one.condition != "running")
    assert f"Delete all 3 ({total / 1e6:.1f} MB)?" in output
    output = _jukesep("clean", answer="y\n")
    assert f"Deleted 3 ({total / 1e6:.1f} MB)." in output
    assert _left() == ["going"]


def test_without_an_answer_nothing_is_deleted(four):
    _jukesep("clean", answer="", ends=1)
    assert len(_left()) == 4


def test_clean_deletes_nothing_that_is_no_training(songs, monkeypatch, tmp_path):
    """JUKESEP_TRAININGS may be a folder that also holds other things."""
    folder = tmp_path / "disk"
    monkeypatch.setenv(paths.VARIABLE, str(folder))
    _interrupted(songs, "stopped")
    (training,) = folder.iterdir()
    (folder / "mine").mkdir()
    (folder / "mine/notes.txt").write_text("keep")
    elsewhere = training.rename(tmp_path / "elsewhere")
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    before = sorted(path.name for path in elsewhere.iterdir())
    assert "mine" not in _jukesep("status")
    assert "elsewhere" not in _jukesep("clean", "--yes")
    assert status.clean(status.trainings()) == []
    assert (folder / "mine/notes.txt").read_text() == "keep"
    assert sorted(path.name for path in elsewhere.iterdir()) == before


def test_a_file_in_place_of_the_folder_is_named(songs, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv(paths.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file: is not a folder. Set JUKESEP_TRAININGS to one"):
        status.trainings()


def test_clean_can_take_the_finished_ones_alone(four):
    assert "Deleted 1" in _jukesep("clean", "--finished", "--yes")
    assert _left() == ["broken", "going", "stopped"]


def test_clean_can_take_old_ones_alone(four):
    _age("stopped", 8.1)
    _age("done", 6.9)
    assert "Deleted 1" in _jukesep("clean", "--older-than", "7", "-y")
    assert _left() == ["broken", "done", "going"]
    assert "Nothing to delete" in _jukesep("clean", "--older-than", "7", "-y")
    _age("going", 30)  # it runs all the same
    assert "Nothing to delete" in _jukesep("clean", "--older-than", "7", "-y")


def test_clean_never_deletes_what_has_begun_to_run_meanwhile(songs, four, monkeypatch):
    """Between the table and the answer."""
    (folder,) = Path("trainings").glob("test-stopped-*")

    def answer(_):
        lock.acquire()
        return True

    lock = FileLock(folder / "lock")
    monkeypatch.setattr(cli.typer, "confirm", answer)
    output = _jukesep("clean")
    assert "Deleted 2 (" in output
    assert _left() == ["going", "stopped"]
    lock.release()
    _train(songs, "stopped")  # whole


def test_what_begins_to_run_while_clean_deletes_has_a_folder_of_its_own(songs, monkeypatch):
    _interrupted(songs, "stopped")
    saved = []

    def start():
        with make_run("stopped") as run:
            run.begin(0, 3, 1)
            run.save(1, {})
            saved.extend(run.folder.glob("state-*"))

    thread, rmtree = threading.Thread(target=start), shutil.rmtree

    def slowly(folder, **options):
        if thread.ident is None:
            thread.start()
            thread.join()
        rmtree(folder, **options)

    monkeypatch.setattr(files.shutil, "rmtree", slowly)
    assert "Deleted 1" in _jukesep("clean", "--yes")
    (state,) = saved
    assert state.name == "state-00000001.state"
    assert state.is_file()
    assert _left() == ["stopped"]


def test_what_clean_deletes_starts_anew(songs):
    _interrupted(songs, "stopped")
    _jukesep("clean", "--yes")
    assert _jukesep("status", "--all").startswith("No unfinished trainings")
    steps = []
    _train(songs, "stopped", loss=lambda _, step: steps.append(step))
    assert steps == [0, 1, 2]


def test_a_training_with_libraries_of_its_own_resumes(monkeypatch):
    """Those of a peer, such as demucs, have a part in no other training."""

    def identity(stage, item, _, libraries=()):
        names = (*status.identity.LIBRARIES, *libraries)
        about = {"stage": {"name": stage, **item}, "libraries": dict.fromkeys(names, "1.0")}
        return about | {"runs on": {}}

    folder = Path("trainings/peer-demucs")
    files.write_json(folder / "identity.json", identity("peer", {"key": "demucs"}, {}, ["demucs"]))
    monkeypatch.setattr(status.identity, "identity", identity)
    monkeypatch.setattr(status, "load", lambda: type("", (), {"model_dump": lambda *_, mode: {}}))
    (found,) = status.trainings()
    assert found.outdated == []
    monkeypatch.setattr(status.identity, "LIBRARIES", (*status.identity.LIBRARIES, "new"))
    (found,) = status.trainings()
    assert found.outdated == ["new"]
