"""A training that is interrupted, or meets a fault, and resumes: to the same bits."""

import copy
import errno
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from filelock import FileLock
from tiny import RATE, make_recipe, make_run, matching, reconstruction, run_training, write_songs
from torch.utils.data import get_worker_info

from jukesep import audio
from jukesep.base import files, paths
from jukesep.base.errors import Interrupted, UserError, reported
from jukesep.model import jukebox
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.resume import folder as trainings
from jukesep.resume.folder import Training
from jukesep.resume.saves import KEPT, MAGIC
from jukesep.training.loop import learning_rate
from jukesep.training.segments import Segments
from jukesep.training.state import State

pytestmark = pytest.mark.usefixtures("entered")

# Rows of the log at 3, 5, 6 and 7: most interruptions fall into a block of means.
RECIPE = make_recipe(steps=7, log_every=3, valid_every=5)
CHECKPOINTS = (4, 7)
TASKS = [reconstruction, matching]
EVERY_STEP = {"save_minutes": 0.0}


@pytest.fixture(autouse=True)
def _no_process_is_left():
    yield
    left = active_children()
    for process in left:
        process.kill()
    assert not left


@pytest.fixture(autouse=True)
def saves(monkeypatch):
    """What each save of the test was given: (step, state)."""
    given, save = [], Training.save

    def spy(run, step, state):
        given.append((step, copy.deepcopy(state)))
        save(run, step, state)

    monkeypatch.setattr(Training, "save", spy)
    return given


@contextmanager
def _when(task, step, do):
    """`do()` just before the loss of a step (from 0) is computed, again in every training."""
    kind, loss = type(task), type(task).loss

    def loss_after(self, batch, now):
        if now == step:
            do()
        return loss(self, batch, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "loss", loss_after)
        yield


@contextmanager
def _steps(task):
    """The steps that are taken meanwhile."""
    taken = []
    kind, loss = type(task), type(task).loss

    def counted(self, batch, now):
        taken.append(now)
        return loss(self, batch, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "loss", counted)
        yield taken


def _stop():
    signal.raise_signal(signal.SIGTERM)


def _fail(error):
    def fail():
        raise error

    return fail


def _train(make, songs, folder="run", recipe=RECIPE, run=None, **options):
    """With fresh objects, as another process has them."""
    run = run or make_run(folder, **EVERY_STEP)
    return run_training(make(), songs, folder, recipe, CHECKPOINTS, run, **options)


def _interrupt(make, songs, after, **options):
    """Train until a signal comes in the step that is number `after`, from 1."""
    with _when(make(), after - 1, _stop), pytest.raises(Interrupted) as stopped:
        _train(make, songs, **options)
    return stopped.value


def _folder(title="test-run"):
    (folder,) = Path("trainings").glob(f"{title}-*")
    return folder


def _results(folder="run"):
    found = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*.*")}
    assert sorted(found) == ["checkpoints/4.pt", "checkpoints/7.pt", "log.csv"]
    return found


def _equal(one, other):
    if isinstance(one, dict):
        return list(one) == list(other) and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


@pytest.fixture(scope="module")
def uninterrupted(songs, tmp_path_factory):
    """What a training without interruption comes to: its files, and its state at the end."""
    found = {}
    for make in TASKS:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp("uninterrupted"))
            patch.delenv(paths.VARIABLE, raising=False)
            states, save = [], Training.save

            def spy(run, step, state, states=states, save=save):
                states.append(copy.deepcopy(state))
                save(run, step, state)

            patch.setattr(Training, "save", spy)
            _train(make, songs, run=make_run("run"))
            found[make] = _results(), states[-1]
    return found


# --- going on ---------------------------------------------------------------------------------


def _check_the_end(make, uninterrupted, saves):
    files_, state = uninterrupted[make]
    assert _results() == files_
    assert saves[-1][0] == RECIPE.steps
    assert _equal(saves[-1][1], state)


@pytest.mark.parametrize("after", range(1, 7))
@pytest.mark.parametrize("make", TASKS)
def test_an_interrupted_training_ends_in_the_same_bits(songs, uninterrupted, saves, make, after):
    stopped = _interrupt(make, songs, after, run=make_run("run"))
    assert f"test run: stopped by SIGTERM after step {after} of 7" in str(stopped)
    assert stopped.status == 143
    assert [step for step, _ in saves] == [after]
    assert not Path("run").exists()
    _train(make, songs, run=make_run("run"))
    assert [step for step, _ in saves] == [after, 7]
    _check_the_end(make, uninterrupted, saves)


@pytest.mark.parametrize("make", TASKS)
def test_so_does_one_that_is_interrupted_again_and_again(songs, uninterrupted, saves, make):
    for after in range(1, 7):
        _interrupt(make, songs, after, run=make_run("run"))
    _train(make, songs, run=make_run("run"))
    assert [step for step, _ in saves] == list(range(1, 8))
    _check_the_end(make, uninterrupted, saves)


@pytest.mark.parametrize("after", [2, 5])
@pytest.mark.parametrize("make", TASKS)
def test_so_does_one_whose_songs_another_process_reads(songs, uninterrupted, saves, make, after):
    ahead = RECIPE.model_copy(update={"workers": 1})
    _interrupt(make, songs, after, recipe=ahead)
    _train(make, songs, recipe=ahead)
    _check_the_end(make, uninterrupted, saves)


def test_what_is_saved_is_all_of_the_model_its_average_and_adam(songs, uninterrupted):
    tensors = uninterrupted[reconstruction][1]["tensors"]
    names = {"average", "means", "squares"}
    names |= {f"model.codebook.{name}" for name in ("k", "k_sum", "k_elem", "_initialised")}
    names |= {f"model.{name}" for name, _ in reconstruction().model.named_parameters()}
    assert set(tensors) == names
    assert uninterrupted[reconstruction][1]["optimiser_steps"] == 7
    assert all(tensors[name].any() for name in ("average", "means", "squares"))


def test_steps_that_were_taken_after_the_save_are_taken_again(songs, uninterrupted, saves):
    """As after a loss of power: the log and a checkpoint are ahead of the newest save."""
    _interrupt(matching, songs, 3)
    folder = _folder()
    kept = {path.name: path.read_bytes() for path in folder.glob("state-*")}
    _interrupt(matching, songs, 6)
    for path in folder.glob("state-*"):
        path.unlink()
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["4.pt"]
    _train(matching, songs)
    _check_the_end(matching, uninterrupted, saves)


def test_the_screen_and_the_log_say_where_a_training_goes_on(songs, capsys):
    _interrupt(matching, songs, 2)
    assert "resumes" not in capsys.readouterr().err
    _train(matching, songs)
    assert "test run: resumes after step 2 of 7, where an earlier run stopped." in (
        capsys.readouterr().err
    )
    log = (_folder() / "training.log").read_text()
    for said in ("7 steps; pid", "interrupted: test run: stopped by SIGTERM", "finished"):
        assert log.count(said) == 1
    assert log.count("resumes after step 2 of 7") == 1


# --- damaged saves ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(songs, tmp_path_factory):
    """The folder of a training that was interrupted after step 4, the step of a checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("interrupted"))
        patch.delenv(paths.VARIABLE, raising=False)
        _interrupt(reconstruction, songs, 4)
        return Path("trainings").resolve()


@pytest.fixture
def newest(interrupted):
    """A copy of it, entered: the path of the newest save, of step 4. The other is of step 3."""
    shutil.copytree(interrupted, "trainings")
    states = sorted(_folder().glob("state-*"))
    assert [path.name for path in states] == ["state-00000003.state", "state-00000004.state"]
    return states[-1]


def _wrap(content):
    return MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def _change(path, change):
    """Something else in a save whose form is right."""
    content = torch.load(io.BytesIO(path.read_bytes()[len(MAGIC) + 65 :]), weights_only=True)
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(_wrap(buffer.getvalue()))


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def _of_another_model(state):
    tensors = state["training"]["tensors"]
    tensors["model.codebook.k"] = torch.zeros(8, 8)


def _of_another_precision(state):
    tensors = state["training"]["tensors"]
    tensors["average"] = tensors["average"].double()


def _of_another_training(state):
    state["identity"] = "{}\n"


class _Code:
    def __reduce__(self):
        return Path.touch, (Path("run by the pickle"),)


def _code(path, save, **options):
    buffer = io.BytesIO()
    save({"training": _Code(), "checkpoints": {}}, buffer, **options)
    path.write_bytes(_wrap(buffer.getvalue()))


DAMAGES = {
    "empty": lambda path: os.truncate(path, 0),
    "cut in the magic": lambda path: os.truncate(path, 5),
    "cut in the digest": lambda path: os.truncate(path, len(MAGIC) + 30),
    "cut before the content": lambda path: os.truncate(path, len(MAGIC) + 65),
    "cut in the middle": lambda path: os.truncate(path, path.stat().st_size // 2),
    "without the last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a flipped bit at the start": lambda path: _flip(path, 0),
    "a flipped bit in the digest": lambda path: path.write_bytes(MAGIC + b"0" * 64 + b"\n."),
    "a flipped bit in the middle": lambda path: _flip(path, 0.5),
    "a flipped bit at the end": lambda path: _flip(path, 1),
    "no pickle": lambda path: path.write_bytes(_wrap(b"state")),
    "an empty pickle": lambda path: path.write_bytes(_wrap(b"")),
    "code in a pickle": lambda path: _code(path, pickle.dump, protocol=2),
    "code in torch's file": lambda path: _code(path, torch.save),
    "a list": lambda path: path.write_bytes(_wrap(pickle.dumps([1, 2], protocol=2))),
    "no log": lambda path: _change(path, lambda state: state.pop("log")),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_save_is_passed_over_for_the_one_before_it(
    songs, uninterrupted, saves, newest, damage, capsys
):
    damage(newest)
    _train(reconstruction, songs)
    said = capsys.readouterr().err
    assert f"warning: test run: {newest} is not an intact save" in said
    assert "resumes after step 3 of 7" in said
    assert [step for step, _ in saves] == [4, 5, 6, 7]
    _check_the_end(reconstruction, uninterrupted, saves)
    assert not Path("run by the pickle").exists()


def test_a_training_whose_saves_are_all_damaged_starts_anew(
    songs, uninterrupted, saves, newest, capsys
):
    before = newest.with_name("state-00000003.state")
    _flip(newest, 0.3)
    _change(before, lambda state: state.pop("timing"))
    _train(reconstruction, songs)
    said = capsys.readouterr().err
    assert all(f"{path} is not an intact save" in said for path in (newest, before))
    assert "resumes" not in said
    assert [step for step, _ in saves] == list(range(1, 8))
    _check_the_end(reconstruction, uninterrupted, saves)
    assert not list(_folder().glob("state-*"))


def test_a_save_lists_the_checkpoints_of_its_own_training_alone(songs, newest):
    """Neither those of before, if the training starts anew, nor files that others left."""
    for path in _folder().glob("state-*"):
        os.truncate(path, 9)
    (_folder() / "checkpoints/notes.pt").write_bytes(b"x")
    _interrupt(reconstruction, songs, 2)
    content = _folder().joinpath("state-00000002.state").read_bytes()[len(MAGIC) + 65 :]
    assert torch.load(io.BytesIO(content), weights_only=True)["checkpoints"] == {}
    assert (_folder() / "checkpoints/notes.pt").is_file()


LOSSES = {
    "missing": lambda path: path.unlink(),
    "damaged": lambda path: _flip(path, 0.5),
}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_a_save_whose_checkpoint_is_lost_is_kept_and_the_one_before_it_is_used(
    songs, uninterrupted, saves, newest, lose, capsys
):
    checkpoint = newest.parent / "checkpoints/4.pt"
    lose(checkpoint)
    good, intact = newest.read_bytes(), []
    look = lambda: intact.append(newest.read_bytes() == good)  # noqa: E731
    with _when(reconstruction(), 3, look):
        _train(reconstruction, songs)
    assert intact == [True]
    said = capsys.readouterr().err
    assert f"warning: test run: {newest} needs {checkpoint}, which is missing or damaged." in said
    assert "resumes after step 3 of 7" in said
    assert [step for step, _ in saves] == [4, 5, 6, 7]
    _check_the_end(reconstruction, uninterrupted, saves)


def test_later_saves_outlive_those_up_to_them(songs, newest):
    """They resume again as soon as their checkpoints are written again: to the same bits."""
    (newest.parent / "checkpoints/4.pt").unlink()
    newest.with_name("state-00000003.state").unlink()
    _interrupt(reconstruction, songs, 3)
    names = [f"state-0000000{step}.state" for step in (2, 3, 4)]
    assert sorted(_states()) == names


@pytest.mark.parametrize("change", [_of_another_model, _of_another_precision, _of_another_training])
def test_an_intact_save_that_does_not_fit_ends_in_words_and_is_kept(songs, newest, change):
    _change(newest, change)
    before = _states()
    with pytest.raises(UserError) as error:
        _train(reconstruction, songs)
    assert f"{newest} is intact, but does not fit this training (it belongs to another " in str(
        error.value
    )
    assert _states() == before
    newest.unlink()  # "move it to another folder"
    with _steps(reconstruction()) as taken:
        _train(reconstruction, songs)
    assert taken == [3, 4, 5, 6]


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: unspecified launch failure"),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    AttributeError("a mistake in the code"),
    KeyboardInterrupt(),
]
PLACES = [(torch, "load"), (Path, "read_bytes"), (State, "load")]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__}")
def test_a_passing_error_while_a_save_is_loaded_changes_no_save(
    songs, uninterrupted, saves, newest, monkeypatch, error, place
):
    before = _states()
    with monkeypatch.context() as patch:
        patch.setattr(*place, lambda *_, **__: _fail(error)())
        with pytest.raises((UserError, type(error))) as raised:
            _train(reconstruction, songs)
    if "out of memory" in str(raised.value):
        assert "The save of step 4 is kept, and the same command resumes" in str(raised.value)
    assert _states() == before
    assert not list(_folder().glob("*.damaged"))
    with _steps(reconstruction()) as taken:
        _train(reconstruction, songs)
    assert taken == [4, 5, 6]
    _check_the_end(reconstruction, uninterrupted, saves)


# --- the end ----------------------------------------------------------------------------------

LEFT = ["identity.json", "lock", "progress.json", "timing.csv", "training.log"]


def _listed(folder):
    return sorted(path.name for path in folder.iterdir())


def test_after_its_end_a_training_leaves_what_tells_of_it_alone(songs, newest):
    _flip(newest, 0.5)
    _train(reconstruction, songs, run=make_run("run", sample_minutes=1e-9))
    folder = _folder()
    assert _listed(folder) == sorted([*LEFT, "samples"])
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["state"], progress["step"], progress["steps"]) == ("finished", 7, 7)
    assert len((folder / "timing.csv").read_text().splitlines()) == len(
        Path("run/log.csv").read_text().splitlines()
    )


class _Killed(BaseException):
    """No more of the process runs."""


def _kill_at(patch, place, name, number):
    """The call `number` (from 1) of a function does not return, from `finish` on."""
    original, calls = getattr(place, name), []

    def called(*arguments, **options):
        calls.append(None)
        if len(calls) == number:
            raise _Killed
        return original(*arguments, **options)

    finish = Training.finish

    def finishing(run):
        patch.setattr(place, name, called)
        finish(run)

    patch.setattr(Training, "finish", finishing)


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        *((shutil, "copyfile", number) for number in (1, 2, 3)),
        *((os, "replace", number) for number in (1, 2, 3, 4)),
        *((os, "fsync", number) for number in (1, 3, 6)),
        (Path, "unlink", 1),  # of the older save
    ],
)
def test_a_training_killed_while_it_finishes_only_finishes_again(
    songs, uninterrupted, place, name, number
):
    with pytest.MonkeyPatch.context() as patch:
        _kill_at(patch, place, name, number)
        with pytest.raises(_Killed):
            _train(matching, songs)
    shutil.rmtree("run", ignore_errors=True)  # as DVC does before it runs a stage
    (_folder() / ".unfinished-1/x").mkdir(parents=True)  # as a killed write does
    with _steps(matching()) as taken:
        _train(matching, songs)
    assert taken == []
    assert _results() == uninterrupted[matching][0]
    assert _listed(_folder()) == LEFT


# --- faults of the numbers --------------------------------------------------------------------


def _states():
    return {path.name: path.read_bytes() for path in _folder().glob("state-*")}


def _fails(make, songs, step, match, do=lambda: None, **options):
    """Train until step `step`, from 0, where `do` or what it does ends it; the message.

    No save is touched by that.
    """
    before = {}

    def ending():
        before.update(_states())
        do()

    with _when(make(), step, ending), pytest.raises(UserError, match=match) as error:
        _train(make, songs, **options)
    assert _states() == before
    assert "Traceback" not in str(error.value)
    return str(error.value)


def _check_fault(message, term, value, songs, parts):
    """fault.json says what is known of step 4, and where its batch was read from."""
    path = _folder() / "fault.json"
    assert f"{path} lists the segments of that step" in message
    assert "lower stage1.learning_rate or stage1.clip" in message
    assert "The save of step 4 is kept; without a change, the same command stops here " in message
    report = json.loads(path.read_text())
    batch = report.pop("batch")
    rate = learning_rate(RECIPE, 4)
    assert report == {"step": 4, "term": term, "value": value, "learning_rate": rate}
    segments = Segments(songs, parts, RECIPE.segment, 0, "test")
    assert [one["index"] for one in batch] == [8, 9]
    for one in batch:
        assert list(one["files"]) == [str(songs[0].file(part)) for part in parts]
        assert one["samples"] == RECIPE.segment
        heards = segments[one["index"]].numpy()
        for (file, start), heard in zip(one["files"].items(), heards, strict=True):
            left, right = audio.read(file, start, one["samples"])
            blend = np.dot(heard - right, left - right) / np.dot(left - right, left - right)
            np.testing.assert_allclose(heard, blend * left + (1 - blend) * right, atol=1e-4)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_leaves_a_report_and_the_saves(songs, monkeypatch, value):
    kind = type(reconstruction())
    loss = kind.loss

    def poisoned(task, batch, step):
        total, terms = loss(task, batch, step)
        return total, {**terms, "commit": terms["commit"] + (float(value) if step == 4 else 0)}

    monkeypatch.setattr(kind, "loss", poisoned)
    message = _fails(reconstruction, songs, 4, f"test run: 'commit' is {value} at step 4")
    _check_fault(message, "commit", value, songs, ("vocals",))


def test_a_gradient_that_is_not_finite_does_so_too(songs, monkeypatch):
    kind = type(matching())
    loss = kind.loss

    def steep(task, batch, step):
        total, terms = loss(task, batch, step)
        if step == 4:
            weight = next(task.model.parameters())
            # Finite value, infinite slope: sqrt at zero.
            total = total + (weight.sum() - weight.sum().detach()).abs().sqrt()
        return total, terms

    monkeypatch.setattr(kind, "loss", steep)
    message = _fails(matching, songs, 4, "test run: 'gradient norm' is nan at step 4")
    _check_fault(message, "gradient norm", "nan", songs, ("mixture", "vocals"))


def _collapsed():
    task = reconstruction()
    # Every code the same: the first wins all latents, and counts as large keep the others.
    task.model.codebook.restore(torch.zeros(16, 8), 1e9)
    return task


def test_a_codebook_that_is_being_lost_is_told_once_with_its_numbers(songs, capsys):
    _train(_collapsed, songs)
    warning = (
        "warning: test run: the codebook is collapsing: at step 3 the batch's codes have a "
        "perplexity of 1.0 of 16 (usage 16)."
    )
    assert capsys.readouterr().err.count(warning) == 1
    log = (_folder() / "training.log").read_text()
    assert log.count("warning: the codebook is collapsing") == 1


def test_nothing_is_said_of_a_codebook_in_use(songs, capsys):
    _train(reconstruction, songs, recipe=RECIPE.model_copy(update={"learning_rate": 1e-3}))
    assert "warning" not in capsys.readouterr().err


def test_nothing_is_said_of_a_codebook_while_the_rate_warms_up(songs, capsys):
    _train(_collapsed, songs, recipe=RECIPE.model_copy(update={"warmup": 5}))
    assert "at step 6 the batch's codes" in capsys.readouterr().err


# --- faults of the disk -----------------------------------------------------------------------


def _no_leftovers():
    for folder in (_folder(), _folder() / "checkpoints"):
        assert not list(folder.glob(".*"))


def _full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _disk_full_at(name, at):
    """From its write number `at` on, a file is written by half, and then there is no room."""
    write, opened, counts = Path.write_bytes, Path.open, {"state": 0, "log": 0}

    def write_bytes(path, content):
        if path.suffix == ".state" and name == "state":
            counts["state"] += 1
            if counts["state"] >= at:
                write(path, content[: len(content) // 2])
                _full()
        return write(path, content)

    def open_(path, mode="r", *arguments, **options):
        file = opened(path, mode, *arguments, **options)
        if path.name == name and "a" in mode:
            counts["log"] += 1
            if counts["log"] >= at:
                file.close()
                _full()
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_bytes)
        patch.setattr(Path, "open", open_)
        yield


@pytest.mark.parametrize(
    ("name", "at", "saved"), [("state", 4, 3), ("log.csv", 2, 4), ("timing.csv", 2, 4)]
)
def test_a_full_disk_ends_a_training_in_words_and_leaves_the_save_before(
    songs, uninterrupted, saves, name, at, saved
):
    with _disk_full_at(name, at), pytest.raises(UserError) as error:
        _train(matching, songs)
    file = f"state-0000000{saved + 1}.state" if name == "state" else name
    assert str(error.value) == (
        f"test run: {_folder() / file} cannot be written: No space left on device. The save of "
        f"step {saved} is kept, and the same command resumes from there. Free some space, change "
        "the permissions, or set JUKESEP_TRAININGS to another folder."
    )
    _no_leftovers()
    assert max(_states()) == f"state-0000000{saved}.state"
    with _steps(matching()) as taken:
        _train(matching, songs)
    assert taken == list(range(saved, 7))
    _check_the_end(matching, uninterrupted, saves)


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_a_checkpoint_that_is_lost_before_the_end_is_written_again(
    songs, uninterrupted, saves, lose
):
    """Nothing is deleted before all results are where they belong."""
    checkpoint = lambda: _folder() / "checkpoints/4.pt"  # noqa: E731
    with (
        _when(matching(), 5, lambda: lose(checkpoint())),
        pytest.raises(UserError, match=r"checkpoints/4.pt is missing, or has changed") as error,
    ):
        _train(matching, songs)
    assert "Traceback" not in str(error.value)
    assert not Path("run").exists()
    assert len(_states()) == KEPT
    _train(matching, songs)
    _check_the_end(matching, uninterrupted, saves)


def test_a_full_disk_where_the_results_go_is_told_and_they_come_later(
    songs, uninterrupted, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", _full)
        with pytest.raises(UserError, match=r"run/log.csv cannot be written: No space") as error:
            _train(matching, songs)
    assert "The save of step 7 is kept" in str(error.value)
    with _steps(matching()) as taken:
        _train(matching, songs)
    assert taken == []
    assert _results() == uninterrupted[matching][0]


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, where one can be had."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk can be mounted by root on Linux alone")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(place, leave):
    """All but `leave` bytes of a disk."""
    left = shutil.disk_usage(place).free - leave
    (place / "filler").write_bytes(bytes(max(left, 0)))


@pytest.mark.parametrize(
    ("step", "leave", "file", "saved"),
    [
        # One page less than what is written: the save after step 3, the checkpoint of step 4.
        (2, 4096, "state-00000003.state", 2),
        (3, 4096, "checkpoints/4.pt", 3),
    ],
)
def test_a_disk_that_is_really_full_does_the_same(
    songs, uninterrupted, saves, disk, monkeypatch, step, leave, file, saved
):
    monkeypatch.setenv(paths.VARIABLE, str(disk))
    fill = lambda: _fill(disk, leave)  # noqa: E731
    with _when(matching(), step, fill), pytest.raises(UserError, match="No space left") as error:
        _train(matching, songs)
    (folder,) = disk.glob("test-run-*")
    assert f"{folder / file} cannot be written" in str(error.value)
    assert f"The save of step {saved} is kept" in str(error.value)
    assert max(folder.glob("state-*")).name == f"state-0000000{saved}.state"
    assert not list(folder.rglob(".*"))
    (disk / "filler").unlink()
    _train(matching, songs)
    _check_the_end(matching, uninterrupted, saves)


def test_so_does_a_disk_whose_error_torch_hides(disk, monkeypatch):
    """As it does where a tensor is larger than what is written at a time."""
    monkeypatch.setenv(paths.VARIABLE, str(disk))
    vqvae = VQVAE(Architecture(width=64, depth=1, downs=(1,), latent_dim=4, codes=4))
    with make_run("run") as run:
        _fill(disk, 12 * 4096)
        path = run.folder / "checkpoints/1.pt"
        with pytest.raises(UserError, match=f"{path} cannot be written: No space left on device"):
            run.checkpoint(1, lambda path: jukebox.save_jukebox(vqvae, path, 1))
        assert not path.parent.exists()


def test_samples_for_which_there_is_no_room_are_told_too(songs, disk, monkeypatch):
    monkeypatch.setenv(paths.VARIABLE, str(disk))
    run = make_run("run", sample_minutes=1e-9)
    with (
        _when(matching(), 2, lambda: _fill(disk, 4096)),
        pytest.raises(UserError, match=r"samples.*cannot be written \(.*disk full"),
    ):
        _train(matching, songs, run=run)


def test_a_disk_that_is_read_only_is_told(songs, uninterrupted, disk, monkeypatch):
    monkeypatch.setenv(paths.VARIABLE, str(disk))
    _interrupt(matching, songs, 2)
    remount = ["mount", "-o", "remount,ro", str(disk)]
    if subprocess.run(remount, capture_output=True).returncode:
        pytest.skip("the disk cannot be made read-only")
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        _train(matching, songs)
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    with _steps(matching()) as taken:
        _train(matching, songs)
    assert taken == [2, 3, 4, 5, 6]
    assert _results() == uninterrupted[matching][0]


def test_a_folder_of_trainings_that_cannot_be_made_is_named(songs, monkeypatch):
    Path("file").touch()
    monkeypatch.setenv(paths.VARIABLE, "file/trainings")
    with pytest.raises(UserError, match=r"file/trainings/test-run-\w+ cannot be written") as error:
        _train(matching, songs)
    assert "or set JUKESEP_TRAININGS to another folder." in str(error.value)
    assert "Nothing was saved yet" in str(error.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("below", [False, True])
def test_a_folder_without_permission_to_write_is_named(songs, below):
    _interrupt(matching, songs, 2)
    folder = _folder() if below else Path("trainings")
    if not below:
        shutil.rmtree(_folder())
    folder.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot be written: Permission denied"):
            _train(matching, songs)
    finally:
        folder.chmod(0o700)


# --- faults of the songs ----------------------------------------------------------------------


def _truncate(path):
    os.truncate(path, 1000)


def _spoil(path):
    """As a whole file: another process may be reading it."""
    samples = audio.read(path)
    samples[:] = np.nan
    audio.write(path, samples, RATE, "FLOAT")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (Path.unlink, "no such file"),
        (_truncate, "ends at sample|not readable as audio"),
        (_spoil, "holds NaN or infinite samples"),
    ],
)
def test_a_song_that_is_lost_meanwhile_is_named_and_its_return_is_enough(
    tmp_path, uninterrupted, saves, damage, said, workers
):
    songs = write_songs(tmp_path / "songs")
    path = songs[0].file("vocals")
    good = path.read_bytes()
    recipe = RECIPE.model_copy(update={"workers": workers})
    run = make_run("run")  # no save but the one for this fault
    with (
        _when(matching(), 1, lambda: damage(path)),
        pytest.raises(UserError, match=said) as error,
    ):
        _train(matching, songs, recipe=recipe, run=run)
    assert str(error.value).startswith(f"{path}: ")
    assert "Traceback" not in str(error.value)
    ((saved, _),) = saves
    assert saved >= 2
    assert workers or saved == 2  # another process has read ahead
    damaged = path.read_bytes() if path.exists() else None
    with pytest.raises(UserError, match=said):
        _train(matching, songs, recipe=recipe, run=make_run("run"))
    assert damaged == (path.read_bytes() if path.exists() else None)
    path.write_bytes(good)
    with _steps(matching()) as taken:
        _train(matching, songs, recipe=recipe)
    assert taken == list(range(saved, 7))
    _check_the_end(matching, uninterrupted, saves)


# --- faults of the machine --------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory: "
            "you tried to allocate 800 bytes. Error code 12 (Cannot allocate memory)"
        ),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),  # another process cannot be started
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_is_told_with_the_settings_that_help(songs, uninterrupted, saves, error):
    message = _fails(matching, songs, 3, "test run: out of memory on cpu at step 3", _fail(error))
    assert "Lower stage1.batch or stage1.segment, or share " in message
    assert "The save of step 3 is kept" in message
    _train(matching, songs)
    _check_the_end(matching, uninterrupted, saves)


@pytest.mark.parametrize("error", [RuntimeError("a mistake in the code"), ValueError("another")])
def test_a_mistake_in_the_code_stays_one(songs, error):
    with _when(matching(), 3, _fail(error)), pytest.raises(type(error)) as raised:
        _train(matching, songs)
    assert raised.value is error


def _prepare_wrongly(*_):
    raise RuntimeError("a mistake in the code")


def test_also_in_another_process(songs, monkeypatch):
    run, recipe = make_run("run"), RECIPE.model_copy(update={"workers": 1})
    task = matching()
    prepare = type(task).prepare

    def wrong(task, batch):
        return _prepare_wrongly() if get_worker_info() else prepare(task, batch)

    monkeypatch.setattr(type(task), "prepare", wrong)
    with pytest.raises(RuntimeError, match="a mistake in the code") as error:
        _train(matching, songs, recipe=recipe, run=run)
    # Though the error is still at hand: they would outlive it, and keep this process from its end.
    assert not active_children()
    assert "in _prepare_wrongly" in str(error.value)


class _Deadly(Segments):
    """Reading one of its segments ends the process that does."""

    def __getitem__(self, index):
        if index == 8 and get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_reading_process_that_dies_ends_the_training_in_words(songs, uninterrupted, saves):
    recipe = RECIPE.model_copy(update={"workers": 1})
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        _train(matching, songs, recipe=recipe, kind=_Deadly)
    assert time.monotonic() - began < 30
    message = str(error.value)
    assert "test run: a process that reads songs died at step" in message
    assert "lower stage1.workers or stage1.segment." in message
    assert "Traceback" not in message
    assert len(saves) <= 4
    _train(matching, songs, recipe=recipe)
    _check_the_end(matching, uninterrupted, saves)


KILLED = "DataLoader worker (pid 1) is killed by signal: Killed."


def _killed_where_a_file_is_missing():
    try:
        Path("missing").unlink()
    except FileNotFoundError:
        raise RuntimeError(KILLED)  # noqa: B904


def test_a_reading_process_that_dies_during_a_save_is_not_a_fault_of_the_disk(songs):
    """torch raises it from a signal, wherever the training is: also while it handles an error."""
    with pytest.raises(RuntimeError, match=re.escape(KILLED)), make_run("run")._disk():
        _killed_where_a_file_is_missing()


class _Signalled(Segments):
    """The process that reads one of its segments is sent the signals of a whole group."""

    def __getitem__(self, index):
        if index == 8 and get_worker_info():
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
        return super().__getitem__(index)


def test_a_reading_process_leaves_signals_to_the_training(songs, uninterrupted, saves):
    recipe = RECIPE.model_copy(update={"workers": 1})
    _train(matching, songs, recipe=recipe, kind=_Signalled)
    _check_the_end(matching, uninterrupted, saves)


# --- two at once ------------------------------------------------------------------------------


def test_a_second_training_of_the_same_is_refused_and_the_first_goes_on(
    songs, uninterrupted, saves, monkeypatch, capsys
):
    monkeypatch.setattr(trainings, "PATIENCE", 0.05)
    first = make_run("run")
    first._facts["pid"] = 4242
    refused = []

    def second():
        with pytest.raises(UserError) as error:
            _train(matching, songs)
        refused.append(str(error.value))

    before = {}

    def look():
        # Nothing but what the first one writes.
        before.update({path.name: path.read_bytes() for path in _folder().glob("*.*")})
        second()
        after = {path.name: path.read_bytes() for path in _folder().glob("*.*")}
        assert after == before

    with _when(matching(), 4, look):
        _train(matching, songs, run=first)
    (message,) = refused
    assert "test run: is already being trained, by process 4242 on " in message
    assert "`jukesep status`" in message
    assert "process 4242" in capsys.readouterr().err
    _check_the_end(matching, uninterrupted, saves)


def test_the_first_is_named_before_its_first_step_too(songs, monkeypatch):
    monkeypatch.setattr(trainings, "PATIENCE", 0.05)
    _interrupt(matching, songs, 2)
    known = json.loads((_folder() / "progress.json").read_text())
    first = make_run("run")
    first._facts["pid"] = 4242
    with first, pytest.raises(UserError, match=r"by process 4242 on .* \(step 2 of 7\)"):
        _train(matching, songs)
    assert known["pid"] != 4242


def test_a_second_training_waits_for_one_that_is_about_to_end(songs, uninterrupted, monkeypatch):
    monkeypatch.setattr(trainings, "PATIENCE", 10.0)
    _interrupt(matching, songs, 2)
    lock = FileLock(_folder() / "lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.2, lock.release)
    timer.start()
    with _steps(matching()) as taken:
        _train(matching, songs)
    timer.join()
    assert taken == [2, 3, 4, 5, 6]
    assert _results() == uninterrupted[matching][0]


def test_a_training_that_has_failed_holds_no_lock(songs, monkeypatch):
    monkeypatch.setattr(trainings, "PATIENCE", 0.05)
    with _when(matching(), 2, _fail(ValueError("x"))), pytest.raises(ValueError, match="x"):
        _train(matching, songs)
    _train(matching, songs)


# --- saves ------------------------------------------------------------------------------------


class _Clock:
    """Time that passes only when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        stand_in = SimpleNamespace(
            monotonic=lambda: self.now, time=time.time, strftime=time.strftime
        )
        monkeypatch.setattr(trainings, "time", stand_in)

    def pass_a_minute(self):
        self.now += 60.0


@contextmanager
def _a_minute_a_step(monkeypatch, make):
    clock = _Clock(monkeypatch)
    kind, loss = type(make()), type(make()).loss

    def lasting(task, batch, step):
        clock.pass_a_minute()
        return loss(task, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "loss", lasting)
        yield


@pytest.mark.parametrize(
    ("minutes", "steps"), [(0, [1, 2, 3, 4, 5, 6, 7]), (2.5, [3, 6, 7]), (5, [5, 7]), (60, [7])]
)
def test_a_training_is_saved_at_the_interval_and_at_its_end(
    songs, saves, monkeypatch, minutes, steps
):
    with _a_minute_a_step(monkeypatch, matching):
        _train(matching, songs, run=make_run("run", save_minutes=minutes))
    assert [step for step, _ in saves] == steps


def test_the_newest_saves_are_kept(songs):
    listed = []
    with pytest.MonkeyPatch.context() as patch:
        row = Training.tick
        patch.setattr(
            Training, "tick", lambda run, step: (listed.append(sorted(_states())), row(run, step))
        )
        _train(matching, songs)
    names = [f"state-{step:08d}.state" for step in range(1, 8)]
    assert listed == [names[max(step - KEPT, 0) : step] for step in range(1, 8)]


def test_durations_go_on_where_they_stopped(songs, monkeypatch):
    with _a_minute_a_step(monkeypatch, matching):
        _interrupt(matching, songs, 4)
        _train(matching, songs)
    timing = (_folder() / "timing.csv").read_text().splitlines()
    assert timing[0] == "step,seconds,steps_per_second"
    rows = [[float(value) for value in line.split(",")] for line in timing[1:]]
    assert [row[:2] for row in rows] == [[3, 180], [5, 300], [6, 360], [7, 420]]
    assert all(row[2] == pytest.approx(1 / 60, rel=0.05) for row in rows)


def test_a_save_is_on_the_disk_before_it_has_its_name(songs, monkeypatch):
    events, fsync, replace, unlink = [], os.fsync, os.replace, Path.unlink

    def synced(handle):
        events.append(("on the disk", os.fstat(handle).st_ino))
        fsync(handle)

    def named(source, target):
        events.append((Path(target).name, os.stat(source).st_ino))
        replace(source, target)

    def deleted(path, **options):
        events.append(("deleted", path.name))
        unlink(path, **options)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", named)
    monkeypatch.setattr(Path, "unlink", deleted)
    _train(matching, songs)
    folder = ("on the disk", _folder().stat().st_ino)
    names = [f"state-{step:08d}.state" for step in range(1, 8)]
    for step, name in enumerate(names, 1):
        (place,) = (place for place, event in enumerate(events) if event[0] == name)
        inode = events[place][1]
        assert events[place - 1] == ("on the disk", inode)
        assert events[place + 1] == folder
        if step > KEPT:
            assert events.index(("deleted", names[step - KEPT - 1])) > place + 1
    # A checkpoint, before the save that names it, and then where DVC expects it.
    written, copied = (place for place, event in enumerate(events) if event[0] == "4.pt")
    assert ("on the disk", events[written][1]) in events[written:]
    assert events.index(("on the disk", events[written][1])) < events.index(
        next(event for event in events if event[0] == names[3])
    )
    assert events[copied - 1] == ("on the disk", events[copied][1])
    assert copied < min(events.index(("deleted", name)) for name in names[-KEPT:])


# --- samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (reconstruction, ["reconstruction", "target"]),
        (matching, ["mixture", "separation", "target"]),
    ],
)
def test_samples_of_a_validation_song_are_written_now_and_then(
    songs, uninterrupted, saves, monkeypatch, make, names
):
    with _a_minute_a_step(monkeypatch, make):
        _train(make, songs, run=make_run("run", sample_minutes=3.0))
    found = {path.name: path for path in (_folder() / "samples").iterdir()}
    assert sorted(found) == [f"{step:08d}-{name}.wav" for step in (3, 6) for name in names]
    for path in found.values():
        sound, rate = soundfile.read(path, always_2d=True)
        assert rate == RATE
        # The two whole segments of a song that is shorter than eight seconds.
        assert sound.shape == (2 * RECIPE.segment, 1)
        assert np.abs(sound).max() > 1e-3
    middle = slice((6000 - 4096) // 2, (6000 + 4096) // 2)
    for part, name in (("vocals", "target"), ("mixture", "mixture")):
        if name in names:
            truth = audio.to_mono(audio.read(songs[0].file(part)))[0, middle]
            sound, _ = soundfile.read(found[f"00000003-{name}.wav"])
            np.testing.assert_allclose(sound, truth, atol=2**-15)
    _check_the_end(make, uninterrupted, saves)


def test_a_sample_that_cannot_be_had_ends_no_training(
    songs, uninterrupted, saves, monkeypatch, capsys
):
    lost = UserError("songs/valid/vocals.wav: no such file.")
    monkeypatch.setattr(Segments, "excerpt", lambda *_: _fail(lost)())
    with _a_minute_a_step(monkeypatch, matching):
        _train(matching, songs, run=make_run("run", sample_minutes=3.0))
    assert capsys.readouterr().err.count(f"warning: test run: no sample: {lost}") == 2
    _check_the_end(matching, uninterrupted, saves)


def test_no_samples_are_written_unasked(songs, monkeypatch):
    with _a_minute_a_step(monkeypatch, matching):
        _train(matching, songs)
    assert not (_folder() / "samples").exists()


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_ctrl_c_once_more_ends_at_once(songs, saves, capsys, number, status):
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    once = lambda: signal.raise_signal(number)  # noqa: E731
    with _when(matching(), 2, once), pytest.raises(SystemExit) as end, reported():
        _train(matching, songs, run=make_run("run"))
    assert end.value.code == status
    assert [step for step, _ in saves] == [3]
    said = capsys.readouterr().err
    assert f"stopped by {number.name} after step 3 of 7, which is saved." in said

    reached = []

    def twice():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)  # as from torchrun, after one to the whole group
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)

    with _when(matching(), 4, twice), pytest.raises(SystemExit) as end, reported():
        _train(matching, songs, run=make_run("run"))
    assert end.value.code == 130
    assert reached == [1]
    assert [step for step, _ in saves] == [3]
    assert "stopped at once" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    progress = json.loads((_folder() / "progress.json").read_text())
    assert (progress["state"], progress["saved_step"]) == ("interrupted", 3)


def test_a_signal_in_the_last_step_leaves_nothing_to_do_but_to_end(songs, uninterrupted, saves):
    """Results that come after it are no use: DVC takes a stage that was interrupted for failed."""
    with _when(matching(), 6, _stop), pytest.raises(Interrupted, match="after step 7 of 7"):
        _train(matching, songs)
    with _when(matching(), 6, lambda: pytest.fail("a step was taken again")):
        _train(matching, songs)
    assert _results() == uninterrupted[matching][0]


def test_the_end_of_who_started_it_stops_a_training_too(songs, saves, monkeypatch):
    parents = [1234]
    monkeypatch.setenv("DVC_STAGE", "stage1")
    monkeypatch.setattr("jukesep.base.signals.STARTED_BY", 1234)
    monkeypatch.setattr("jukesep.base.signals.os.getppid", lambda: parents[-1])
    with _when(matching(), 2, lambda: parents.append(1)), pytest.raises(Interrupted) as stopped:
        _train(matching, songs, run=make_run("run"))
    assert stopped.value.status == 143
    assert "stopped by the end of the process that started it after step 3" in str(stopped.value)
    assert [step for step, _ in saves] == [3]
