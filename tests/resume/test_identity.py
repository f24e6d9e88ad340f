"""What a training is: another one as soon as anything changes that its result depends on."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from settings import flat
from tiny import make_recipe, make_run, matching, run_training, write_songs

from jukesep.base import params
from jukesep.base.errors import Interrupted, UserError
from jukesep.base.paths import VARIABLE
from jukesep.pipeline import train
from jukesep.resume import identity
from jukesep.resume.folder import Training

ROOT = Path(__file__).parents[2]
STAGES = ("weights", "stage1", "stage2")
ITEMS = {
    "weights": {"init": "pretrained"},
    "stage1": {"stem": "drums", "init": "scratch"},
    "stage2": {"stem": "drums", "init": "scratch"},
}


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project's folder, entered, with all that its stages depend on; no torch reads it."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    for folder in ("jukesep", "stages"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__*__"))
    for name in (
        "data/prepared/manifest.json",
        "data/prepared/checks.json",
        "data/prepared/songs/song/drums.wav",
        "runs/weights/scratch/vqvae.pth.tar",
        "runs/weights/pretrained/vqvae.pth.tar",
        "runs/stage1/drums_scratch/checkpoints/2.pt",
        "runs/stage1/drums_scratch/log.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def composed():
    return yaml.safe_load(params.compose(["scale=tiny"], ROOT / "conf"))


def _key(stage, parameters, **more):
    return identity.key(identity.identity(stage, ITEMS[stage], parameters, **more))


def _keys(parameters, **more):
    return {stage: _key(stage, parameters, **more) for stage in STAGES}


def _with(parameters, name, value):
    """The parameters with one changed."""
    copy = json.loads(json.dumps(parameters))
    *sections, last = name.split(".")
    place = copy
    for section in sections:
        place = place[section]
    assert place[last] != value
    place[last] = value
    return copy


def _other(value):
    """A value that a parameter does not have now."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, 9]
    return f"{value}9" if isinstance(value, str) else (value or 0) + 1


def _concerned(name):
    """The trainings whose result a parameter can change."""
    section = name.split(".")[0]
    if section in ("precision", "seed"):
        return {*STAGES}
    if section in ("codebook", "model", "losses"):
        # Stage 2 finds the model in what stage 1 leaves, and has one of the losses.
        both = name in ("losses.linf", "losses.linf_k")
        return {*STAGES} if both else {"weights", "stage1"}
    if name in ("stage1.steps", "stage1_steps.drums"):
        return {"stage1", "stage2"}  # whose start has the name of its last step
    own = {"pretrain": "weights", "weights": "weights", "stage1": "stage1", "stage2": "stage2"}
    return {own[section]} if section in own else set()


def test_a_training_is_another_one_for_each_parameter_that_it_depends_on(composed, monkeypatch):
    # Read once: what the files hold stays, and takes the time.
    described = yaml.safe_load(Path("dvc.yaml").read_text())
    monkeypatch.setattr(identity.yaml, "safe_load", lambda _: described)
    monkeypatch.setattr(identity, "_digests", list)
    monkeypatch.setattr(identity, "version", lambda name: name)
    before = _keys(composed)
    seen = set()
    for name, value in flat(composed):
        after = _keys(_with(composed, name, _other(value)))
        assert {stage for stage in STAGES if before[stage] != after[stage]} == _concerned(name), (
            name
        )
        seen.add(name.split(".")[0])
    assert {"evaluate", "stems", "save_minutes", "separation", "stage1_steps", "data"} <= seen


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("jukesep/training/losses.py", {*STAGES}),
        ("jukesep/training/loop.py", {*STAGES}),
        ("jukesep/training/tasks.py", {*STAGES}),
        ("jukesep/pipeline/train.py", {*STAGES}),
        ("jukesep/pipeline/evaluate.py", set()),
        ("jukesep/scoring/metrics.py", set()),
        ("jukesep/separation/files.py", set()),
        ("jukesep/cli.py", set()),
        ("stages/stage1.py", {"stage1"}),
        ("jukesep/report/write.py", set()),
        ("jukesep/resume/folder.py", set()),  # what it does changes no result
        ("data/prepared/manifest.json", {*STAGES}),
        ("data/prepared/checks.json", {*STAGES}),
        ("data/prepared/songs/song/drums.wav", {*STAGES}),
        ("data/prepared/songs/another/drums.wav", {*STAGES}),
        ("runs/weights/scratch/vqvae.pth.tar", {"stage1", "stage2"}),
        ("runs/weights/pretrained/vqvae.pth.tar", set()),
        ("runs/stage1/drums_scratch/checkpoints/2.pt", {"stage2"}),
        ("runs/stage1/drums_scratch/checkpoints/3.pt", {"stage2"}),
        ("runs/stage1/drums_scratch/log.csv", {"stage2"}),
        ("jukesep/__pycache__/losses.pyc", set()),
    ],
)
def test_a_training_is_another_one_for_each_file_that_it_depends_on(composed, name, stages):
    before = _keys(composed)
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n")
    after = _keys(composed)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == stages


def test_a_file_that_is_lost_or_renamed_is_another_input(composed):
    keys = {_key("stage1", composed)}
    song = Path("data/prepared/songs/song/drums.wav")
    keys.add(_key("stage1", composed))
    assert len(keys) == 1
    song.rename(song.with_name("bass.wav"))
    keys.add(_key("stage1", composed))
    song.with_name("bass.wav").unlink()
    keys.add(_key("stage1", composed))
    assert len(keys) == 3


def test_songs_of_other_samples_are_another_input_and_are_read_once(composed, monkeypatch):
    read, found = [], identity.file_digest
    monkeypatch.setattr(identity, "file_digest", lambda path: (read.append(path), found(path))[1])

    def key():
        read.clear()
        return _key("stage1", composed), [path.name for path in read if path.suffix == ".wav"]

    song = Path("data/prepared/songs/song/drums.wav")
    before, times = key()
    assert times == ["drums.wav"]
    assert key() == (before, [])
    # As many bytes as before.
    song.write_bytes(song.read_bytes()[::-1])
    after, times = key()
    assert (after != before, times) == (True, ["drums.wav"])


def test_the_file_of_the_weights_is_an_input(composed, tmp_path):
    file = tmp_path / "weights.pth"
    weights = {**composed["weights"], "source": "file", "file": str(file), "depends_on": str(file)}
    keys = set()
    for content in (b"one", b"two"):
        file.write_bytes(content)
        keys.add(_key("weights", {**composed, "weights": weights}))
    assert len(keys) == 2


def test_a_training_is_another_one_for_other_libraries_and_devices(composed, monkeypatch):
    before = _keys(composed, device="cpu", threads="0")
    assert before == _keys(composed, threads="0", device="cpu")
    for more in ({"device": "cuda", "threads": "0"}, {"device": "cpu", "threads": "1"}):
        after = _keys(composed, **more)
        assert not any(before[stage] == after[stage] for stage in STAGES)
    version = identity.version
    for library in ("torch", "numpy", "numba", "scipy", "soundfile", "torchaudio"):
        changed = lambda name, library=library: version(name) + ".1" * (name == library)  # noqa: E731
        monkeypatch.setattr(identity, "version", changed)
        after = _keys(composed, device="cpu", threads="0")
        assert not any(before[stage] == after[stage] for stage in STAGES), library


def test_each_stem_and_start_is_a_training_of_its_own(composed):
    items = [{"stem": s, "init": i} for s in ("drums", "vocals") for i in ("scratch", "pretrained")]
    keys = {identity.key(identity.identity("stage1", item, composed)) for item in items}
    assert len(keys) == 4


def test_an_identity_can_be_read_and_compared(composed):
    one = identity.identity("stage1", ITEMS["stage1"], composed, device="cpu")
    other = identity.identity(
        "stage1", ITEMS["stage1"], _with(composed, "stage1.clip", 9.0), device="cuda"
    )
    assert one["parameters"]["stage1.clip"] == composed["stage1"]["clip"]
    assert one["stage"] == {"name": "stage1", "stem": "drums", "init": "scratch"}
    assert {*one["libraries"]} == {*identity.LIBRARIES}
    assert identity.differences(one, other) == ["stage1.clip", "device"]
    assert identity.differences(one, json.loads(json.dumps(one))) == []
    assert identity.key(one) == identity.key(json.loads(json.dumps(one)))


def test_code_is_the_projects_or_else_that_which_runs(composed, project):
    before = _keys(composed)
    shutil.rmtree(project / "jukesep")
    shutil.rmtree(project / "stages")
    assert _keys(composed) == before  # a copy of it


@pytest.mark.parametrize(
    ("lost", "said"),
    [("dvc.yaml", "dvc.yaml: no such file"), ("data", "data/prepared: no such file or folder")],
)
def test_what_is_missing_is_named(composed, project, monkeypatch, lost, said):
    monkeypatch.setattr(identity, "_ROOTS", (Path(),))
    path = project / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=said):
        _keys(composed)


# --- what comes of it -------------------------------------------------------------------------


def test_an_experiment_gives_its_trainings_their_identity(composed, monkeypatch):
    """As `stage1` is called, up to the folder."""

    def folder(**changes):
        changed = composed
        for name, value in changes.items():
            changed = _with(changed, name.replace("__", "."), value)
        p = params.Params.model_validate(changed)
        item, out = ITEMS["stage1"], Path("runs/stage1/drums_scratch")
        with train.training(p, "stage1", "stage1", item, out) as run:
            assert isinstance(run, Training)
            assert run.about.save_minutes == p.save_minutes
            assert run.about.sample_minutes == p.sample_minutes
            return run.folder

    first = folder()
    assert first.parent == Path("trainings")
    assert first.name.startswith("stage1-drums_scratch-")
    assert folder(save_minutes=0.5, sample_minutes=1.0) == first
    assert folder(evaluate__museval=not composed["evaluate"]["museval"], stems=["drums"]) == first
    assert folder(separation__chunk=4096, stage2__steps=9, stage2__checkpoints=[9]) == first
    others = [
        folder(seed=99), folder(stage1__steps=99), folder(threads=1 + composed["threads"]),
        folder(precision="bf16"), folder(codebook__decay=0.5),
    ]  # fmt: skip
    assert len({first, *others}) == 6


def _train(songs, what, interrupt=False):
    """Three steps of stage 2 as the training `what` describes; whether it started anew."""
    run = make_run("run", identity=what, save_minutes=0.0)
    if interrupt:
        run._signals._received = 15
    steps, save = [], run.save
    run.save = lambda step, state: (steps.append(step), save(step, state))
    try:
        run_training(matching(), songs, "run", make_recipe(steps=3, valid_every=3), [], run)
    except Interrupted:
        assert interrupt
    return steps[0] == 1


def test_an_interrupted_training_goes_on_as_itself_only_and_is_told_from_others(
    composed, tmp_path, capsys
):
    songs = write_songs(tmp_path / "songs")
    one = identity.identity("stage1", ITEMS["stage1"], composed, device="cpu")
    assert _train(songs, one, interrupt=True)
    (interrupted,) = Path("trainings").glob("*/")
    assert "starts from the beginning" not in capsys.readouterr().err

    Path("jukesep/training/losses.py").write_text("# other code")
    changed = _with(_with(composed, "stage1.clip", 9.0), "evaluate.museval", True)
    other = identity.identity("stage1", ITEMS["stage1"], changed, device="cuda")
    assert _train(songs, other)
    assert (
        f"test run: starts from the beginning; {interrupted} holds an interrupted training with "
        "other stage1.clip, jukesep/training, device. `jukesep clean` deletes it."
    ) in capsys.readouterr().err

    # A finished one cannot be resumed, and is not mentioned.
    many = {**composed, "stage1": {name: _other(v) for name, v in composed["stage1"].items()}}
    third = identity.identity("stage1", ITEMS["stage1"], many, device="cpu")
    assert _train(songs, third)
    said = capsys.readouterr().err
    assert said.count("starts from the beginning") == 1
    names = "stage1.steps, stage1.batch, stage1.segment, stage1.learning_rate, stage1.warmup"
    # Beside these five the rest of the recipe, and the code.
    assert f"with other {names} and {len(composed['stage1']) - 5 + 1} more." in said

    assert not _train(songs, one)
    assert "resumes after step 1 of 3" in capsys.readouterr().err
