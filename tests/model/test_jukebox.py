"""Jukebox's files: read exactly, or refused by name; nothing in them runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jukesep.base.errors import UserError
from jukesep.model.jukebox import (
    jukebox_names,
    load_encoder,
    load_jukebox,
    read_hps,
    read_step,
    save_encoder,
    save_jukebox,
    to_jukebox_keys,
)
from jukesep.model.vqvae import VQVAE, Architecture

SMALL = Architecture(width=4, depth=2, downs=(2,), latent_dim=3, codes=16)
# The three levels of one file, after 5b's: the lowest one wider and deeper.
LEVELS = (
    Architecture(width=8, depth=4, downs=(3,), latent_dim=6, codes=16),
    Architecture(width=4, depth=2, downs=(3, 2), latent_dim=6, codes=16),
    Architecture(width=4, depth=2, downs=(3, 2, 2), latent_dim=6, codes=16),
)
OUT = "decoders.0.out.bias"
FIRST = "encoders.0.level_blocks.0.model.0.0.weight"


def random_vqvae(architecture: Architecture, seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    vqvae = VQVAE(architecture)
    vqvae.codebook.restore(torch.randn(architecture.codes, architecture.latent_dim), 10.0)
    return vqvae


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.fixture
def model() -> dict[str, torch.Tensor]:
    return to_jukebox_keys(random_vqvae(SMALL))


def test_names_of_the_bottom_level() -> None:
    names = jukebox_names(Architecture())
    assert len(names) == len(set(names.values())) == 211
    vqvae = VQVAE()
    expected = {
        FIRST: (64, 1, 4),
        "encoders.0.level_blocks.0.model.2.1.model.7.model.1.weight": (64, 64, 3),
        "encoders.0.level_blocks.0.model.2.1.model.7.model.3.weight": (64, 64, 1),
        "encoders.0.level_blocks.0.model.3.bias": (64,),
        "decoders.0.level_blocks.0.model.0.weight": (64, 64, 3),
        "decoders.0.level_blocks.0.model.1.0.model.0.model.3.bias": (64,),
        "decoders.0.level_blocks.0.model.3.1.weight": (64, 64, 4),
        "decoders.0.out.weight": (1, 64, 3),
        "bottleneck.level_blocks.0.k": (2048, 64),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in to_jukebox_keys(vqvae).items()}
    assert {name: shapes[name] for name in expected} == expected


def test_the_three_levels_of_5b_have_669_tensors() -> None:
    upper = [Architecture(width=32, depth=4, downs=downs) for downs in ((3, 2), (3, 2, 2))]
    names = [jukebox_names(architecture) for architecture in (Architecture(), *upper)]
    assert sum(map(len, names)) == len({n for level in names for n in level.values()}) == 669
    for architecture, level in zip(upper, names[1:], strict=True):
        state = {n for n in VQVAE(architecture).state_dict() if not n.startswith("codebook.")}
        assert state | {"codebook.k"} == level.keys()


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("level", range(3))
def test_each_level_of_a_three_level_file(level: int, prefix: str, tmp_path: Path) -> None:
    vqvaes = [random_vqvae(architecture, seed) for seed, architecture in enumerate(LEVELS)]
    model = {
        prefix + name: tensor for vqvae in vqvaes for name, tensor in to_jukebox_keys(vqvae).items()
    }
    path = write(tmp_path / "vqvae.pth.tar", {"model": model, "step": 3, "hps": {}, "opt": None})
    audio = torch.randn(1, 1, 512)

    loaded = load_jukebox(path, level)
    assert loaded.architecture == LEVELS[level]
    assert same(loaded, vqvaes[level])
    assert torch.equal(loaded(audio), vqvaes[level](audio))
    assert same(load_encoder(path, LEVELS[level], level), vqvaes[level].encoder)


@pytest.mark.parametrize("level", range(3))
def test_save_and_load(level: int, tmp_path: Path) -> None:
    vqvae, path = random_vqvae(LEVELS[level]), tmp_path / "deep" / "10.pt"
    save_jukebox(vqvae, path, 10, {"sample_rate": 22050, "part": "drums"})
    loaded = load_jukebox(path)
    assert loaded.architecture == vqvae.architecture
    assert same(loaded, vqvae)
    assert torch.equal(loaded.codebook.k, vqvae.codebook.k)
    assert read_hps(path) | {"sample_rate": 22050, "part": "drums"} == read_hps(path)
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"model", "step", "hps", "opt"}
    assert content["step"] == 10


def test_the_dilation_growth_is_in_the_hps(tmp_path: Path) -> None:
    vqvae = random_vqvae(Architecture(4, 3, (1,), 3, 16, dilation_growth=4))
    save_jukebox(vqvae, tmp_path / "a.pt", 1)
    loaded = load_jukebox(tmp_path / "a.pt")
    assert loaded.architecture.dilation_growth == 4
    without = write(tmp_path / "b.pt", {"model": to_jukebox_keys(vqvae)})
    assert load_jukebox(without).architecture.dilation_growth == 3


def test_the_same_model_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        save_jukebox(random_vqvae(SMALL), tmp_path / name, 1)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_jukebox(random_vqvae(SMALL), path, 1)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_jukebox(random_vqvae(SMALL), path, 2, {"function": lambda: None})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.pt"]


def test_names_there_and_back(model: dict[str, torch.Tensor]) -> None:
    ours = {name: model[theirs] for name, theirs in jukebox_names(SMALL).items()}
    state = random_vqvae(SMALL).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.items())
    assert state.keys() - ours.keys() == {
        f"codebook.{name}" for name in ("k_sum", "k_elem", "_initialised")
    }


def test_an_encoder_alone(tmp_path: Path) -> None:
    vqvae, path = random_vqvae(SMALL), tmp_path / "e2.pt"
    save_encoder(vqvae.encoder, path, 5, {"part": "bass"})
    assert same(load_encoder(path, SMALL), vqvae.encoder)
    assert same(load_encoder(path), vqvae.encoder)
    assert read_hps(path)["part"] == "bass"
    assert torch.load(path, weights_only=True)["model"].keys() < to_jukebox_keys(vqvae).keys()
    with pytest.raises(UserError, match=r"missing tensors: bottleneck.level_blocks.0.k"):
        load_jukebox(path)
    other = Architecture(width=4, depth=2, downs=(2,), latent_dim=3, codes=16, dilation_growth=2)
    with pytest.raises(UserError, match="of the same architecture"):
        load_encoder(path, other)


def first_step(vqvae: VQVAE) -> float:
    """How far the codebook moves in the first training step, RMS."""
    latents = vqvae.encode(torch.randn(1, 1, 4096)).detach()
    codes, _ = vqvae.quantise(latents)
    before = vqvae.codebook.k.clone()
    vqvae.codebook.update(latents, codes, torch.Generator().manual_seed(0))
    return float((vqvae.codebook.k - before).square().mean().sqrt())


def test_the_first_training_step_keeps_the_codebook_of_a_file(tmp_path: Path) -> None:
    vqvae, path = random_vqvae(SMALL), tmp_path / "a.pt"
    torch.manual_seed(0)
    latents = vqvae.encode(torch.randn(4, 1, 4096)).detach()
    vqvae.codebook.initialise(latents, torch.Generator().manual_seed(0))
    save_jukebox(vqvae, path, 1)

    kept = load_jukebox(path, segment=4096)
    assert kept.codebook.initialised
    assert torch.equal(kept.codebook.k_elem, torch.full((16,), 64.0))  # 4096 / 4 latents, 16 codes
    torch.testing.assert_close(kept.codebook.k_sum, 64 * kept.codebook.k)

    wiped = load_jukebox(path, segment=4096)
    wiped.codebook.k_sum.zero_()
    wiped.codebook.k_elem.zero_()
    spread = float(vqvae.codebook.k.std())
    assert first_step(kept) < 0.05 * spread
    assert first_step(wiped) > 0.5 * spread


def test_the_paper_s_codes_start_with_24_latents(tmp_path: Path) -> None:
    save_jukebox(random_vqvae(Architecture()), tmp_path / "a.pt", 1)
    assert torch.equal(load_jukebox(tmp_path / "a.pt").codebook.k_elem, torch.full((2048,), 24.0))


def test_missing_tensors_are_named(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    for name in model:
        rest = {other: tensor for other, tensor in model.items() if other != name}
        path = write(tmp_path / "a.pt", {"model": rest})
        with pytest.raises(UserError, match=rf"a\.pt: .* missing tensors: {name}\."):
            load_jukebox(path)


@pytest.mark.parametrize(
    "name",
    [
        "encoders.0.level_blocks.0.model.0.0.scale",
        "encoders.0.level_blocks.1.model.0.0.weight",
        "encoders.0.level_blocks.0.model.0.1.model.999999999.model.1.weight",
        "bottleneck.level_blocks.0.k_sum",
        "prior.weight",
        "module.decoders.0.out.weight",
    ],
)
def test_unknown_tensors_are_named(
    name: str, model: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pt", {"model": model | {name: torch.zeros(1)}})
    with pytest.raises(UserError, match=f"unknown tensors: {name}"):
        load_jukebox(path)


def test_a_level_that_is_not_there(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt", {"model": model})
    with pytest.raises(UserError, match=r"no encoder of level 2\. Levels found: \[0\]"):
        load_jukebox(path, level=2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (OUT, torch.zeros(2), r"shape \(2,\).*\(1,\)"),
        (OUT, torch.zeros(1, dtype=torch.int64), "finite floats"),
        (OUT, torch.tensor([float("nan")]), "finite floats"),
        (OUT, torch.zeros(1).to_sparse(), "finite floats"),
        (OUT, torch.zeros(1, device="meta"), "finite floats"),
        (OUT, "text", "finite floats"),
        (7, torch.zeros(1), "finite floats"),
        (FIRST, torch.zeros(()), "width is 0"),
        ("encoders.0.level_blocks.0.model.2.weight", torch.zeros(5, 4, 3), "other tensors need"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_tensors_that_cannot_be_right(
    name: Any, value: Any, message: str, model: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pt", {"model": model | {name: value}})
    with pytest.raises(UserError, match=message):
        load_jukebox(path)


@pytest.mark.parametrize("growth", [0, "3", [3], 10**12], ids=str)
def test_a_dilation_growth_that_cannot_be_right(
    growth: Any, model: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    content = {"model": model, "hps": {"dilation_growth_rate": growth}}
    with pytest.raises(UserError, match="dilation_growth"):
        load_jukebox(write(tmp_path / "a.pt", content))


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [1, 2], {"state_dict": {}}, {"model": [1]}], ids=str
)
def test_other_contents_are_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.pt: not a Jukebox checkpoint"):
        load_jukebox(write(tmp_path / "a.pt", content))


def test_an_empty_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Levels found: none"):
        load_jukebox(write(tmp_path / "a.pt", {"model": {}}))


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.int32, np.bool_])
def test_numpy_numbers_among_the_hyperparameters(
    kind: Any, model: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    hps = {"bandwidth": {"l2": kind(1)}, "argv": "train.py"}
    path = write(tmp_path / "a.pt", {"model": model, "hps": hps, "step": 20001})
    value = read_hps(path)["bandwidth"]["l2"]
    assert value == 1
    assert type(value) in (float, int, bool)
    assert same(load_jukebox(path), random_vqvae(SMALL))
    assert read_step(path) == 20001


def test_numpy_objects_are_no_way_in(model: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path, mark = tmp_path / "a.pt", tmp_path / "ran"
    for value in (np.array([1.0]), np.array(Hostile(mark), dtype=object), np.datetime64("2021")):
        write(path, {"model": model, "hps": {"value": value}})
        if isinstance(value, np.datetime64):
            assert read_hps(path) == {"value": None}  # Read as no number, by nothing of numpy's.
        else:
            with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
                read_hps(path)
    assert not mark.exists()


@pytest.mark.parametrize("content", [{}, {"step": "many"}, {"step": None}], ids=str)
def test_a_file_that_does_not_say_its_step_is_at_0(content: Any, tmp_path: Path) -> None:
    assert read_step(write(tmp_path / "a.pt", {"model": {}} | content)) == 0


@pytest.mark.parametrize("load", [load_jukebox, load_encoder, read_hps, read_step])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_file_runs_nothing(
    load: Any, zipped: bool, model: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path, mark = tmp_path / "a.pt", tmp_path / "ran"
    content = {"model": model, "hps": Hostile(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"a\.pt: not a checkpoint that can be read safely"):
        load(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # The file was a hostile one.


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped"])
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_jukebox(random_vqvae(SMALL), path, 1)
    whole = path.read_bytes()
    flipped = whole[:80] + bytes(255 - byte for byte in whole[80:120]) + whole[120:]
    contents = {"empty": b"", "text": b"<html>404</html>", "cut": whole[:-500], "flipped": flipped}
    path.write_bytes(contents[damage])
    with pytest.raises(UserError, match=r"a\.pt: not a checkpoint that can be read safely"):
        load_jukebox(path)


def test_no_file_and_a_folder_say_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        load_jukebox(tmp_path / "a.pt")
    with pytest.raises(UserError, match="directory"):
        load_jukebox(tmp_path)


def test_a_file_is_not_called_damaged_for_lack_of_memory(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"whole")

    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", no_memory)
    with pytest.raises(UserError, match=r"a\.pt: too little memory to read it"):
        read_hps(tmp_path / "a.pt")
