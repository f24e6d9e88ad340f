"""Models as files: what is written is what is read, and what does not fit is named."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from commands import run_jukesep, save_models
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import jukesep
from jukesep.base import files, params, paths
from jukesep.base.errors import UserError
from jukesep.model.checkpoints import load_model
from jukesep.model.jukebox import save_encoder, save_jukebox
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.pipeline import pack
from jukesep.separation import models
from jukesep.separation.chunked import apply
from jukesep.separation.separator import digests
from jukesep.songs.manifest import STEMS

ROOT = Path(__file__).parents[2]
ABOUT = {
    "sample_rate": 8000, "init": "pretrained", "step": 4, "data": "noise", "licence": "none",
    "scores": {"test, seen": 1.5}, "commit": "abc", "parameters": {"seed": 0},
}  # fmt: skip
SMALL = Architecture(width=4, depth=1, latent_dim=4, codes=8)


def _vqvae(seed=0, architecture=SMALL):
    torch.manual_seed(seed)
    vqvae = VQVAE(architecture)
    vqvae.codebook.restore(torch.randn(architecture.codes, architecture.latent_dim), 1.0)
    return vqvae.eval()


@pytest.fixture
def folder(tmp_path):
    """Models of two stems."""
    for seed, stem in enumerate(("vocals", "drums")):
        models.save(tmp_path / "models", stem, _vqvae(seed), ABOUT)
    return tmp_path / "models"


def test_a_folder_holds_what_was_put_in(folder):
    card = models.read_card(folder)
    assert list(card.stems) == ["drums", "vocals"]
    assert card.sample_rate == 8000
    drums = card.stems["drums"]
    assert (drums.data, drums.licence, drums.commit) == ("noise", "none", "abc")
    assert drums.scores == {"test, seen": 1.5}
    assert sorted(path.name for path in folder.iterdir()) == [
        "drums.safetensors", "separator.json", "vocals.safetensors",
    ]  # fmt: skip
    audio = torch.randn(1, 1, 800)
    for seed, stem in enumerate(("vocals", "drums")):
        with torch.inference_mode():
            assert torch.equal(models.load(folder, stem, card)(audio), _vqvae(seed)(audio))


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(1, 9), depth=st.integers(1, 3), latent_dim=st.integers(1, 9),
    codes=st.integers(1, 30), downs=st.lists(st.integers(1, 3), min_size=1, max_size=2),
)  # fmt: skip
def test_any_architecture_comes_back_to_the_bit(tmp_path_factory, **numbers):
    folder = tmp_path_factory.mktemp("models")
    vqvae = _vqvae(1, Architecture(**numbers))
    card = models.save(folder, "bass", vqvae, ABOUT)
    found = models.load(folder, "bass", models.read_card(folder))
    assert found.architecture == vqvae.architecture
    assert card == models.read_card(folder)
    for name, value in vqvae.state_dict().items():
        assert torch.equal(value, found.state_dict()[name]), name


def test_the_same_models_are_the_same_files(folder, tmp_path):
    for seed, stem in enumerate(("vocals", "drums")):
        models.save(tmp_path / "again", stem, _vqvae(seed), ABOUT)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_separator_is_loaded_from_models_and_from_trainings(folder, tmp_path):
    mixture = np.random.default_rng(0).uniform(-1, 1, (2, 900)).astype(np.float32)
    separator = jukesep.load_separator(folder)
    assert separator.stems == ("drums", "vocals")
    assert separator.sample_rate == 8000
    assert set(separator(mixture, 8000)) == {"drums", "vocals"}
    stage1, stage2 = save_models(tmp_path / "runs")
    runs = jukesep.load_separator(tmp_path / "runs")
    models.save(tmp_path / "packed", "vocals", load_model(stage1, stage2), ABOUT)
    packed = jukesep.load_separator(tmp_path / "packed")
    np.testing.assert_array_equal(runs(mixture, 8000)["vocals"], packed(mixture, 8000)["vocals"])


def test_a_separator_decodes_as_its_folder_says(folder, tmp_path, capsys):
    mixture = np.random.default_rng(0).uniform(-1, 1, (2, 904)).astype(np.float32)
    nearest = jukesep.load_separator(folder)(mixture, 8000)["drums"]
    soft = {"bottleneck": "soft", "temperature": 0.5}
    models.save(tmp_path / "soft", "drums", _vqvae(1), ABOUT | soft)
    found = jukesep.load_separator(tmp_path / "soft")(mixture, 8000)["drums"]
    expected = apply(_vqvae(1), torch.from_numpy(mixture), "soft", 0.5).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - nearest).max() > 1e-3
    # A model that is added does not change it.
    models.save(tmp_path / "soft", "vocals", _vqvae(0), ABOUT)
    card = models.read_card(tmp_path / "soft")
    assert (card.bottleneck, card.temperature) == ("soft", 0.5)
    # Stems separated before are separated again once this changes.
    before = digests(["drums"], tmp_path / "soft")
    models.save(tmp_path / "soft", "drums", _vqvae(1), ABOUT | soft | {"temperature": 3.0})
    assert digests(["drums"], tmp_path / "soft") != before
    assert run_jukesep("info", str(tmp_path / "soft")) == 0
    assert "bottleneck    soft, temperature 3" in capsys.readouterr().out


def test_without_a_refinement_only_the_wanted_models_are_loaded(folder):
    for stem in ("bass", "other"):
        models.save(folder, stem, _vqvae(2), ABOUT)
    (folder / "bass.safetensors").unlink()
    assert jukesep.load_separator(folder, refinement="none", stems=["drums"]).stems == ("drums",)
    for refinement in (None, "masks"):
        with pytest.raises(UserError, match=r"bass.safetensors.* needs the model of bass: choose"):
            jukesep.load_separator(folder, refinement=refinement, stems=["drums"])
    with pytest.raises(UserError, match=r"bass.safetensors: .*again\.$"):
        jukesep.load_separator(folder, refinement="none", stems=["drums", "bass"])
    with pytest.raises(UserError, match="stem 'piano': no model for it"):
        jukesep.load_separator(folder, refinement="none", stems=["piano"])


def test_other_files_beside_checkpoints_are_passed_over(tmp_path):
    stage1, stage2 = save_models(tmp_path / "runs")
    for folder in (stage1.parent, stage2.parent):
        for name in (".tmp.pt", ".unfinished-ab1.pt", "5 (copy).pt", "-6.pt", "last.pt", "7.pt~"):
            (folder / name).write_bytes(b"x")
    found = models.last_checkpoints(tmp_path / "runs", "vocals", "pretrained")
    assert found == (stage1, stage2)
    stage1.unlink()
    with pytest.raises(UserError, match="stage1/vocals_pretrained/checkpoints: no checkpoints fou"):
        models.last_checkpoints(tmp_path / "runs", "vocals", "pretrained")


def test_a_stem_keeps_its_own_licence_beside_others(folder, capsys):
    other = {**ABOUT, "licence": "non-commercial use only", "data": "theirs", "commit": None}
    models.save(folder, "bass", _vqvae(), other)
    stems = models.read_card(folder).stems
    assert [stems[stem].licence for stem in ("drums", "bass")] == ["none", other["licence"]]
    assert [stems[stem].commit for stem in ("drums", "bass")] == ["abc", None]
    assert run_jukesep("info", str(folder)) == 0
    said = capsys.readouterr().out
    assert "licence       none (drums, vocals)" in said
    assert "licence       non-commercial use only (bass)" in said


def test_another_init_than_the_folder_has_is_refused(folder):
    assert jukesep.load_separator(folder, "pretrained").stems == ("drums", "vocals")
    with pytest.raises(UserError, match="holds models with init 'pretrained', not 'scratch'"):
        jukesep.load_separator(folder, "scratch")


def test_models_of_one_folder_are_alike(folder):
    with pytest.raises(UserError, match="with sample_rate 8000, but the model of bass has 16000"):
        models.save(folder, "bass", _vqvae(), {**ABOUT, "sample_rate": 16000})
    with pytest.raises(UserError, match=r"with architecture .*width=4"):
        models.save(folder, "bass", _vqvae(architecture=Architecture(5, 1, (3,), 4, 8)), ABOUT)
    assert list(models.read_card(folder).stems) == ["drums", "vocals"]


def test_a_model_that_is_not_finite_is_not_saved(tmp_path):
    vqvae = _vqvae()
    vqvae.codebook.k[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"vocals: codebook.k holds NaN or infinity"):
        models.save(tmp_path / "models", "vocals", vqvae, ABOUT)
    assert not (tmp_path / "models").exists()


def _edit(change):
    def spoil(folder):
        path = folder / models.CARD
        card = json.loads(path.read_text())
        change(card)
        path.write_text(json.dumps(card))

    return spoil


def _tensors(change):
    """Change a file of tensors and the card with it, as whoever tampers with both would."""

    def spoil(folder):
        path = folder / "vocals.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(
            tensors, path, {"architecture": models.read_card(folder).architecture.model_dump_json()}
        )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        _edit(lambda card: card["stems"]["vocals"].update(sha256=digest))(folder)

    return spoil


def _replace(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _bytes(change):
    def spoil(folder):
        path = folder / "vocals.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _outside(name):
    def spoil(folder):
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return spoil


def _instead(name, make):
    def spoil(folder):
        (folder / name).unlink()
        make(folder / name)

    return spoil


SPOILT = {
    "no card": (lambda f: (f / models.CARD).unlink(), "no models"),
    "no JSON": (_replace(models.CARD, b"{"), "separator.json: not JSON"),
    "deep JSON": (_replace(models.CARD, b"[" * 200_000), "separator.json: not JSON"),
    "a list": (_replace(models.CARD, b"[]"), "separator.json: content"),
    "binary": (_replace(models.CARD, b"\xff\xfe"), "separator.json: not JSON"),
    "too large": (_replace(models.CARD, b" " * (1 << 23)), "bytes, too large for a card"),
    "another format": (_edit(lambda c: c.update(format=2)), "has format 2, this jukesep reads 1"),
    "an unknown key": (_edit(lambda c: c.update(extra=1)), "separator.json: extra"),
    "no rate": (_edit(lambda c: c.pop("sample_rate")), "separator.json: sample_rate"),
    "a rate of nothing": (_edit(lambda c: c.update(sample_rate=0)), "sample_rate"),
    "an unknown stem": (_edit(lambda c: c["stems"].update(x=c["stems"]["drums"])), "stems.x"),
    "a path": (_edit(lambda c: c["stems"]["vocals"].update(file="../a.safetensors")), "file"),
    "an absolute path": (_edit(lambda c: c["stems"]["vocals"].update(file="/etc/passwd")), "file"),
    "a huge model": (_edit(lambda c: c["architecture"].update(width=65536)), "bytes, a model of"),
    "too wide": (_edit(lambda c: c["architecture"].update(width=1 << 40)), "architecture.width"),
    "too deep": (_edit(lambda c: c["architecture"].update(depth=10**9)), "architecture.depth"),
    "another width": (_edit(lambda c: c["architecture"].update(width=5)), "drums.safetensors: "),
    "another dilation": (
        _edit(lambda c: c["architecture"].update(dilation_growth=2)), "holds a model of"
    ),
    "a number as text": (_edit(lambda c: c["architecture"].update(codes="8")), "codes"),
    "no file": (lambda f: (f / "vocals.safetensors").unlink(), "not a file in this folder"),
    "a link out": (_outside("vocals.safetensors"), "not a file in this folder"),
    "a loop of links": (
        _instead("vocals.safetensors", lambda path: path.symlink_to(path.name)),
        "vocals.safetensors: not a file in this folder",
    ),
    "a card that is a link out": (_outside(models.CARD), "separator.json: not a file in this"),
    "a card that is a loop": (
        _instead(models.CARD, lambda path: path.symlink_to(path.name)),
        "separator.json: not a file in this folder",
    ),
    "a card that is a pipe": (_instead(models.CARD, os.mkfifo), "not a file in this folder"),
    "a format that is no number": (_edit(lambda c: c.update(format=True)), "has format True"),
    "no stems": (_edit(lambda c: c.update(stems={})), "separator.json: stems"),
    "what steers a terminal": (
        _edit(lambda c: c["stems"]["vocals"].update(data="\x1b]0;x\x07")),
        "separator.json: stems.vocals.data",
    ),
    "what turns a line around": (
        _edit(lambda c: c["stems"]["vocals"].update(licence="\u202emine")),
        "separator.json: stems.vocals.licence",
    ),
    "a key that steers a terminal": (
        _edit(lambda c: c.update({"\x1b]0;x\x07": 1})), r"separator.json: \x1b]0;x\x07: Extra"
    ),
    "half a character": (
        _edit(lambda c: c["stems"]["vocals"].update(parameters={"a": "\ud800"})), "parameters.a"
    ),
    "parameters in parameters": (
        _edit(lambda c: c["stems"]["vocals"].update(parameters={"a": {"b": {"c": 1}}})),
        "parameters.a",
    ),
    "a long format": (
        _edit(lambda c: c.update(format="A" * 10_000)), "A...A"
    ),
    "dilations beyond counting": (
        _edit(lambda c: c["architecture"].update(depth=40, dilation_growth=64)),
        "separator.json: model: dilation_growth 64",
    ),
    "a score that is none": (
        _edit(lambda c: c["stems"]["vocals"].update(scores={"test": float("nan")})),
        "separator.json: stems.vocals.scores",
    ),
    "cut off": (_bytes(lambda b: b[:-100]), ": sha256 is"),
    "half of it": (_bytes(lambda b: b[: len(b) // 4]), "vocals.safetensors: "),
    "empty": (_bytes(lambda b: b""), "vocals.safetensors: 0 bytes"),
    "a bit changed": (_bytes(lambda b: b[:-1] + bytes([b[-1] ^ 1])), ": sha256 is"),
    "a missing tensor": (_tensors(lambda t: t.pop(next(iter(t)))), "vocals.safetensors"),
    "another name": (
        _tensors(lambda t: t.update({"codebook.x": t.pop("codebook.k")})),
        "lacks the tensor codebook.k",
    ),
    "another shape": (
        _tensors(lambda t: t.update({"codebook.k": t["codebook.k"].T.contiguous()})),
        "codebook.k is",
    ),
    "another type": (
        _tensors(lambda t: t.update({"codebook.k": t["codebook.k"].view(torch.int32)})),
        "torch.int32",
    ),
    "NaN": (_tensors(lambda t: t["codebook.k"].fill_(float("nan"))), "holds NaN or infinity"),
    "no safetensors": (
        lambda f: (
            _bytes(lambda b: b"\xff" * len(b))(f),
            _edit(
                lambda c: c["stems"]["vocals"].update(
                    sha256=hashlib.sha256(
                        (f / "vocals.safetensors").read_bytes()
                    ).hexdigest()
                )
            )(f),
        ),
        "not a safetensors file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_what_does_not_fit_is_named(folder, name):
    spoil, message = SPOILT[name]
    spoil(folder)
    with pytest.raises(UserError) as error:
        jukesep.load_separator(folder)
    assert message in str(error.value)
    assert str(folder) in str(error.value)


def test_checkpoints_are_imported_and_separate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_models(tmp_path / "runs")
    stage1, stage2 = (
        f"runs/{stage}/vocals_pretrained/checkpoints/4.pt" for stage in ("stage1", "stage2")
    )
    words = ("import", "--stage1", stage1, "--stage2", stage2, "-o", "mine")
    assert run_jukesep(*words, "--stem", "vocals", "--licence", "mine alone") == 0
    assert "1 models at 8,000 Hz" in capsys.readouterr().out
    assert run_jukesep(*words, "--stem", "drums") == 0
    assert run_jukesep(*words, "--stem", "drums") == 1
    assert "already has a model for drums. Pass --overwrite" in capsys.readouterr().err
    assert run_jukesep(*words, "--stem", "drums", "--sample-rate", "16000", "--overwrite") == 1
    assert "its sample rate is 8000 Hz, not 16000 Hz" in capsys.readouterr().err
    assert run_jukesep("info", "mine", "--json") == 0
    card = json.loads(capsys.readouterr().out)
    assert list(card["stems"]) == ["drums", "vocals"]
    assert card["stems"]["vocals"]["step"] == 4
    mixture = np.random.default_rng(0).uniform(-1, 1, (1, 900)).astype(np.float32)
    found = jukesep.load_separator("mine")(mixture, 8000)["vocals"]
    np.testing.assert_array_equal(found, jukesep.load_separator("runs")(mixture, 8000)["vocals"])
    Path("other").mkdir()
    Path("other/file").write_text("mine")
    assert run_jukesep(*words[:-1], "other", "--stem", "bass") == 1
    assert "other: already exists and is not a folder of models." in capsys.readouterr().err


def _killed_at(number, do):
    """`do()` in a process that is killed just before the disk changes for the time `number`.

    Whether it was killed.
    """
    child = os.fork()
    if not child:
        changes = []

        def hook(event, arguments):
            written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if written or event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"):
                changes.append(event)
                if len(changes) == number:
                    os._exit(9)

        sys.addaudithook(hook)
        try:
            do()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def _is(folder, stem, vqvae):
    found = models.load(folder, stem, models.read_card(folder)).state_dict()
    return torch.equal(found["codebook.k"], vqvae.state_dict()["codebook.k"])


def _shown(folder):
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")
def test_a_killed_import_leaves_the_folder_as_before_or_after(folder, tmp_path):
    old, new, newest = (_vqvae(seed) for seed in (0, 2, 3))
    ends = []
    for number in range(1, 30):
        there = tmp_path / f"copy {number}"
        shutil.copytree(folder, there)
        killed = _killed_at(number, lambda there=there: models.save(there, "vocals", new, ABOUT))
        ends.append(_is(there, "vocals", new))
        assert ends[-1] or _is(there, "vocals", old)
        assert _is(there, "drums", _vqvae(1))
        models.save(there, "vocals", newest, ABOUT)
        assert _is(there, "vocals", newest)
        assert len(list(there.glob("vocals-*"))) <= 1
        if not killed:
            break
    assert number > 5
    assert ends == sorted(ends)  # once it is the new one, it stays so
    assert (ends[0], ends[-1]) == (False, True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")
def test_after_a_killed_first_import_the_same_command_succeeds(tmp_path, capsys):
    stage1, stage2 = map(str, save_models(tmp_path / "runs"))
    words = ("import", "--stage1", stage1, "--stage2", stage2, "--stem", "vocals", "-o")
    vqvae = load_model(stage1, stage2)
    for number in range(1, 30):
        there = tmp_path / f"mine {number}"
        killed = _killed_at(number, lambda there=there: models.save(there, "vocals", vqvae, ABOUT))
        if not killed:
            break
        status = run_jukesep(*words, str(there))
        assert status == 0 or "already has a model for vocals" in capsys.readouterr().err
        assert _is(there, "vocals", vqvae)
        assert _shown(there) == ["separator.json", "vocals.safetensors"]
    assert number > 5


def test_a_file_in_the_folder_of_models_is_never_overwritten(folder):
    (folder / "bass.safetensors").write_bytes(b"mine")
    (folder / "notes.safetensors").write_bytes(b"mine")
    models.save(folder, "bass", _vqvae(4), ABOUT)
    models.save(folder, "bass", _vqvae(5), ABOUT)
    card = models.read_card(folder)
    assert _is(folder, "bass", _vqvae(5))
    assert card.stems["bass"].file == f"bass-{card.stems['bass'].sha256[:12]}.safetensors"
    assert len(_shown(folder)) == 6
    for name in ("bass", "notes"):
        assert (folder / f"{name}.safetensors").read_bytes() == b"mine"


def test_a_card_that_cannot_be_written_leaves_the_folder_as_it_was(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_text = Path.write_text

    def full(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        models.save(folder, "vocals", _vqvae(2), ABOUT)
    monkeypatch.setattr(Path, "write_text", write_text)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("first", "second", "more", "message"),
    [
        ({"part": "vocals"}, {}, {}, "was trained for vocals, not for drums"),
        ({"sample_rate": 44100}, {"sample_rate": 8000}, {}, "was trained at 8000 Hz"),
        ({"sample_rate": -5}, {"sample_rate": -5}, {}, "its sample rate is -5"),
        ({"sr": 22050}, {"sr": 22050}, {"sample_rate": 8000}, "sample rate is 22050 Hz, not 8000"),
        ({}, {}, {"sample_rate": 20_000_000}, "the model of drums: sample_rate"),
        ({}, {}, {"licence": "\udcff"}, "the model of drums: licence"),
        ({}, {}, {"licence": "\x1b[31mmine"}, "the model of drums: licence"),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit_are_not_imported(tmp_path, first, second, more, message):
    vqvae = _vqvae()
    save_jukebox(vqvae, tmp_path / "1.pt", 4, first)
    save_encoder(vqvae.encoder, tmp_path / "2.pt", 4, second)
    with pytest.raises(UserError, match=message):
        models.import_checkpoints(
            tmp_path / "mine", "drums", tmp_path / "1.pt", tmp_path / "2.pt", **more
        )
    assert not (tmp_path / "mine").exists()


def test_jukeboxs_name_of_the_sample_rate_is_read(tmp_path):
    vqvae = _vqvae()
    save_jukebox(vqvae, tmp_path / "1.pt", 4, {"sr": 22050})
    save_encoder(vqvae.encoder, tmp_path / "2.pt", 4, {"sr": 22050})
    paths = tmp_path / "1.pt", tmp_path / "2.pt"
    assert models.import_checkpoints(tmp_path / "mine", "drums", *paths).sample_rate == 22050


@pytest.mark.parametrize(
    ("hps", "said"),
    [({"sr": 22050}, 22050), ({}, 44100), ({"sample_rate": 0}, "0"), ({"sr": "abc"}, "'abc'"),
     ({"part": "bass"}, "trained for bass, not for drums")],
)  # fmt: skip
def test_trainings_are_loaded_with_the_checks_of_a_pair_of_files(tmp_path, hps, said):
    vqvae, (stage1, stage2) = _vqvae(), save_models(tmp_path, stem="drums")
    save_jukebox(vqvae, stage1, 4, hps)
    save_encoder(vqvae.encoder, stage2, 4, hps)
    if isinstance(said, int):
        assert jukesep.load_separator(tmp_path, refinement="none").sample_rate == said
    else:
        with pytest.raises(UserError, match=said):
            jukesep.load_separator(tmp_path)


def test_two_imports_at_a_time_keep_both_stems(folder, monkeypatch):
    """The second one reads the card when the first one has written it."""
    read = models.read_card

    def slow(*arguments):
        card = read(*arguments)
        time.sleep(0.1)
        return card

    monkeypatch.setattr(models, "read_card", slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda stem: models.save(folder, stem, _vqvae(), ABOUT), ("bass", "other")))
    assert set(read(folder).stems) == set(STEMS)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOLCK])
def test_a_folder_is_written_where_no_lock_can_be(folder, monkeypatch, number):
    """Such as a mounted folder, whose parent only root may write."""

    acquire = files.FileLock.acquire

    def refused(lock, *arguments, **options):
        if Path(lock.lock_file).parent == folder.parent:
            raise OSError(number, "no", lock.lock_file)
        return acquire(lock, *arguments, **options)

    monkeypatch.setattr(files.FileLock, "acquire", refused)
    models.save(folder, "bass", _vqvae(), ABOUT)
    assert set(models.read_card(folder).stems) == {"bass", "drums", "vocals"}


def test_info_says_what_a_folder_holds_and_what_does_not_fit(folder, capsys):
    assert run_jukesep("info", str(folder)) == 0
    said = capsys.readouterr().out
    for words in ("2 models at 8,000 Hz", "width 4", "noise", "none", "SDR 1.50 dB (test, seen)"):
        assert words in said
    SPOILT["a bit changed"][0](folder)
    assert run_jukesep("info", str(folder)) == 1
    assert ": sha256 is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("info", "absent"), "absent/separator.json: no such file. Run `dvc repro`"),
        (("info", "x" * 300), "separator.json: File name too long"),
        (("separate", "song.wav", "-o", "out", "--models", "x" * 300), "no models"),
        (("import", "--stage1", "a", "--stage2", "b", "--stem", "bass", "-o", "x" * 300),
         "cannot be written to: File name too long"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("song.wav", np.zeros(100), 8000)
    assert run_jukesep(*words) == 1
    assert message in capsys.readouterr().err


SCORES = """song,group,stem,system,init,step,metric,value
a,seen,vocals,separation,pretrained,4,sdr,1.0
b,seen,vocals,separation,pretrained,4,sdr,2.0
c,held_out,vocals,separation,pretrained,4,sdr,-1.0
a,seen,vocals,separation,pretrained,2,sdr,9.0
a,seen,vocals,separation,pretrained,4,sdr_v4,9.0
a,seen,vocals,ceiling,pretrained,,sdr,9.0
"""


def test_the_stage_packs_the_last_checkpoint_of_each_stem(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_models(tmp_path / "runs", stem="vocals")
    scores = tmp_path / "results/scores/vocals_pretrained.csv"
    scores.parent.mkdir(parents=True)
    scores.write_text(SCORES)
    changes = ["stem=vocals", "stage1.steps=4", "stage2.steps=4", "stage2.checkpoints=[2,4]"]
    changes += ["model.sample_rate=8000", "separation.bottleneck=soft", "separation.temperature=7"]
    text = params.compose(changes, ROOT / "conf")
    (tmp_path / "params.yaml").write_text(text)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / "models/separator").mkdir(parents=True)
    (tmp_path / "models/separator/drums.safetensors").write_text("of another run")
    command = [sys.executable, "-m", "stages.separator"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    card = models.read_card(paths.SEPARATOR)
    assert list(card.stems) == ["vocals"]
    assert (card.bottleneck, card.temperature) == ("soft", 7.0)
    assert card.stems["vocals"].scores == {"test, seen": 1.5, "test, held_out": -1.0}
    assert (card.stems["vocals"].step, card.stems["vocals"].init) == (4, "pretrained")
    assert card.stems["vocals"].parameters["stage2"]["checkpoints"] == [2, 4]
    assert card.stems["vocals"].licence == "that of jukesep (MIT): trained from random weights"
    assert sorted(path.name for path in paths.SEPARATOR.iterdir()) == [
        "separator.json", "vocals.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "weights", "init", "licence"),
    [
        ("band", "jukebox", "scratch", "that of jukesep (MIT): trained from random weights"),
        ("musdb18hq", "pretrain", "pretrained",
         "that of jukesep (MIT): trained from random weights; "
         "research only: trained on MUSDB18-HQ"),
        ("musdb18hq", "jukebox", "pretrained",
         "non-commercial use only: fine-tuned from OpenAI's Jukebox; "
         "research only: trained on MUSDB18-HQ"),
    ],
)  # fmt: skip
def test_the_licence_is_that_of_the_weights_and_of_the_songs(data, weights, init, licence):
    changes = (f"data={data}", f"weights={weights}", f"inits=[{init}]")
    root = ("data.root=/songs",) if data != "band" else ()
    found = params._check(yaml.safe_load(params.compose([*changes, *root], ROOT / "conf")), "conf")
    assert pack._licence(found, init) == licence
