"""Files of weights that are not what they should be: said in words, and no code is run."""

from __future__ import annotations

import json
import os
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jukesep.base.errors import UserError, reported
from jukesep.systems.published import convert, hdemucs, htdemucs, open_unmix
from jukesep.systems.published.weights import fill, only, read


class Code:
    """Makes a folder, if a pickle of it is read."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_code_is_run(tmp_path):
    torch.save({"weight": Code(tmp_path / "run")}, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=r"cannot be read without running code.*\.convert --help"):
        read(tmp_path / "mine.pth")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "holds list, where tensors by name belong"),
        ({}, "holds dict, where"),
        ({"a": torch.tensor([float("nan")])}, "'a' is not a tensor of finite numbers"),
        ({"a": 1}, "'a' is not a tensor"),
        ({1: torch.zeros(2)}, "1 is not a tensor"),
        ({"a": torch.zeros(2).to_sparse()}, "'a' is not a tensor"),
    ],
)
def test_other_contents(tmp_path, content, message):
    torch.save(content, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "mine.pth")


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
def test_a_damaged_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=f"{name}: (cannot be read|not a safetensors file)"):
        read(tmp_path / name)


def test_a_folder_has_one_file(tmp_path):
    with pytest.raises(UserError, match="no file of weights"):
        only(tmp_path)
    (tmp_path / "readme.txt").touch()
    (tmp_path / "a.pth").touch()
    assert only(tmp_path) == tmp_path / "a.pth"
    (tmp_path / "b.safetensors").touch()
    with pytest.raises(UserError, match=r"holds 2 files of weights: a\.pth, b\.safetensors"):
        only(tmp_path)
    (tmp_path / "mdx_extra").mkdir()
    with pytest.raises(UserError, match="test songs"):
        only(tmp_path / "mdx_extra")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(3, 2)}, "lacks tensors bias"),
        (
            {"weight": torch.ones(3, 2), "bias": torch.ones(3), "scale": torch.ones(1)},
            "has the unknown tensors scale",
        ),
        (
            {"weight": torch.ones(2, 3), "bias": torch.ones(3)},
            r"weight has the shape \(2, 3\), but Linear needs \(3, 2\)",
        ),
    ],
)
def test_tensors_of_another_network(tmp_path, tensors, message):
    save_file(tensors, tmp_path / "mine.safetensors")
    network = nn.Linear(2, 3)
    before = network.weight.clone()
    with pytest.raises(UserError, match=message):
        fill(network, read(tmp_path / "mine.safetensors"))
    assert torch.equal(network.weight, before)


def test_float16_becomes_float32(tmp_path):
    save_file(
        {"weight": torch.ones(3, 2).half(), "bias": torch.ones(3)}, tmp_path / "a.safetensors"
    )
    network = nn.Linear(2, 3)
    fill(network, read(tmp_path / "a.safetensors"))
    assert network.weight.dtype == torch.float32
    assert network.weight.sum() == 6


def test_a_system_refuses_weights_of_test_songs(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "hdemucs_high_trained.pt")
    with pytest.raises(UserError, match="HDEMUCS_HIGH_MUSDB_PLUS was trained on the test"):
        hdemucs.load(tmp_path / "hdemucs_high_trained.pt")


def test_files_of_stems(tmp_path):
    for name in ("bass.pth", "bass-new.pth"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="a second file for bass"):
        open_unmix.load(tmp_path)
    (tmp_path / "bass-new.pth").rename(tmp_path / "violin.pth")
    with pytest.raises(UserError, match=r"violin\.pth: not named after a stem"):
        open_unmix.load(tmp_path)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "is of no class that it names"),
        ({"klass": "os.system", "args": "[]", "kwargs": "{}"}, "is of os.system"),
        ({"args": "[]"}, "its arguments cannot be read"),
        ({"args": "[", "kwargs": "{}"}, "its arguments cannot be read"),
        ({"args": "[]", "kwargs": '{"sources": ["a"], "segment": 0}'}, "make no demucs"),
        ({"args": "[]", "kwargs": '{"sources": ["a"], "channels": "many"}'}, "make no demucs"),
        ({"args": "[]", "kwargs": '{"sources": ["a"], "channels": 100000}'}, "lacks tensors"),
    ],
)
def test_arguments_that_a_file_cannot_have(tmp_path, about, message):
    about = {"klass": htdemucs.CLASS, **about} if about else about
    save_file({"a": torch.zeros(1)}, tmp_path / "mine.safetensors", about)
    with pytest.raises(UserError, match=message):
        htdemucs.load(tmp_path / "mine.safetensors")


# --- the converter ----------------------------------------------------------------------------


@pytest.fixture
def th(tmp_path):
    """A .th file as `demucs.states.serialize_model` makes it."""
    from fractions import Fraction

    from demucs.htdemucs import HTDemucs

    kwargs = {"channels": 8, "nfft": 1024, "t_layers": 1, "t_heads": 2, "segment": Fraction(3, 2)}
    torch.manual_seed(0)
    model = HTDemucs(["a", "b"], **kwargs)
    state = {name: value.half() for name, value in model.state_dict().items()}
    package = {"klass": HTDemucs, "args": (["a", "b"],), "kwargs": kwargs, "state": state}
    torch.save(package | {"training_args": {}}, tmp_path / "mine.th")
    return tmp_path / "mine.th"


def converted(*words):
    """The exit status of the converter, as it is run."""
    with pytest.raises(SystemExit) as end, reported():
        convert.app([str(word) for word in words])
    return end.value.code


def test_a_th_file_is_converted(th, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert converted(th, "-o", target) == 1
    assert "runs the code in it" in capsys.readouterr().err
    assert not target.exists()
    assert converted(th, "-o", target, "--run-code") == 0
    state = torch.load(th, weights_only=False)["state"]
    assert all(torch.equal(value, state[name]) for name, value in load_file(target).items())
    song = torch.randn(2, 44_100).numpy()
    assert htdemucs.load(target)(song, 44_100).keys() == {"a", "b"}

    from demucs.hf import load_safetensors_model

    assert load_safetensors_model(target).sources == ["a", "b"]
    assert converted(th, "-o", target, "--run-code") == 1
    assert "--overwrite" in capsys.readouterr().err


def test_the_sum_in_the_name_is_compared_before_code_is_run(tmp_path):
    torch.save(Code(tmp_path / "run"), tmp_path / "mine-00000000.th")
    with pytest.raises(UserError, match="has 00000000"):
        convert.convert(tmp_path / "mine-00000000.th", tmp_path / "out.safetensors")
    assert not (tmp_path / "run").exists()


def test_another_class_is_not_converted(tmp_path):
    package = {"klass": zipfile.ZipFile, "args": (), "kwargs": {}, "state": {"a": torch.zeros(1)}}
    torch.save(package, tmp_path / "mine.th")
    with pytest.raises(UserError, match=r"holds a zipfile\.ZipFile"):
        convert.convert(tmp_path / "mine.th", tmp_path / "out.safetensors")
    torch.save({"state": {}}, tmp_path / "mine.th")
    with pytest.raises(UserError, match="not a model of demucs"):
        convert.convert(tmp_path / "mine.th", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_converted_file_is_known_by_the_file_it_is_from(tmp_path):
    from jukesep.systems.published.catalogue import ALSO, PUBLISHED, about

    source = next(iter(ALSO))
    save_file({"a": torch.zeros(1)}, tmp_path / "mine.safetensors", {"converted_from": source})
    state = read(tmp_path / "mine.safetensors")
    assert about("htdemucs", [state.sha256], ["mine"])[0] == PUBLISHED["htdemucs"].trained_on
    json.dumps(state.metadata)
    refused = {"converted_from": "c1b80bdd" + "0" * 56}
    save_file({"a": torch.zeros(1)}, tmp_path / "mine.safetensors", refused)
    with pytest.raises(UserError, match="test songs"):
        read(tmp_path / "mine.safetensors")
