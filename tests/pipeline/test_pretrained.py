"""Jukebox's weights: fetched, kept, checked, loaded. What is not them is refused; none of it runs.

The server is the test's own, on the loopback address.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from web import Answer, Site, cut, nobody, redirect, running, status, whole

from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.base.params import Weights
from jukesep.model.jukebox import load_jukebox, to_jukebox_keys
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.pipeline import pretrained

ROOT = Path(__file__).parents[2]
# As the levels of Jukebox's file: the lowest wider and deeper.
LEVELS = (
    Architecture(width=8, depth=4, downs=(3,), latent_dim=6, codes=16),
    Architecture(width=4, depth=2, downs=(3, 2), latent_dim=6, codes=16),
    Architecture(width=4, depth=2, downs=(3, 2, 2), latent_dim=6, codes=16),
)


def weights(source: str = "jukebox", **values: Any) -> Weights:
    found = {"source": source, "file": None, "level": 0, "sha256": None} | values
    return Weights.model_validate({"depends_on": found["file"] or "", **found})


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def saved(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def vqvaes() -> list[VQVAE]:
    torch.manual_seed(0)
    made = [VQVAE(architecture) for architecture in LEVELS]
    for vqvae in made:
        codes = torch.randn(vqvae.architecture.codes, vqvae.architecture.latent_dim)
        vqvae.codebook.restore(codes, 1.0)
    return made


@pytest.fixture(scope="module")
def checkpoint(vqvaes: list[VQVAE]) -> bytes:
    """Three levels in OpenAI's layout."""
    model = {name: tensor for vqvae in vqvaes for name, tensor in to_jukebox_keys(vqvae).items()}
    return saved({"model": model, "step": 3, "hps": {}, "opt": None})


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUKESEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "jukebox" / "models" / "5b" / "vqvae.pth.tar"


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    urls = nobody(), nobody()
    monkeypatch.setattr(pretrained, "URLS", urls)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return urls


@pytest.fixture
def site(offline: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with running() as site:
        monkeypatch.setattr(pretrained, "URLS", (f"{site.address}/1", f"{site.address}/2"))
        yield site


# --- Jukebox's file ---------------------------------------------------------------------------


def test_the_published_file() -> None:
    hosts = "openaipublic.azureedge.net", "openaipublic.blob.core.windows.net"
    assert (
        tuple(f"https://{host}/jukebox/models/5b/vqvae.pth.tar" for host in hosts)
        == pretrained.URLS
    )
    assert pretrained.SHA256.startswith("69745413a48e887f")
    assert len(pretrained.SHA256) == 64


def test_the_cache_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUKESEP_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in pretrained.cached().parents
    assert "jukesep" in pretrained.cached().parts
    monkeypatch.setenv("JUKESEP_CACHE", "~/elsewhere")
    assert pretrained.cached() == tmp_path / "elsewhere/jukebox/models/5b/vqvae.pth.tar"


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: str) -> None:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("JUKESEP_CACHE", raising=False)
    monkeypatch.setattr(pretrained, "user_cache_path", none)
    with pytest.raises(UserError, match=r"no home folder .* Set JUKESEP_CACHE"):
        pretrained.cached()


def test_fetched_once_then_from_the_cache(
    site: Site, cache: Path, checkpoint: bytes, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(pretrained, "SHA256", sha256(checkpoint))
    site.at("/1", cut(checkpoint, len(checkpoint) // 2))
    site.at("/2", whole(checkpoint))
    said = []
    for _ in range(2):
        assert pretrained.find(weights()) == cache
        assert cache.read_bytes() == checkpoint
        assert os.listdir(cache.parent) == [cache.name]
        said.append(capfd.readouterr().err)
        assert "non-commercial use only" in said[-1]
    assert "100%" in said[0]
    assert "100%" not in said[1]
    assert [path for path, _ in site.requests] == ["/1", "/2"]


@pytest.mark.parametrize("level", range(3))
def test_each_level_of_the_fetched_file(
    level: int, site: Site, cache: Path, checkpoint: bytes, vqvaes: list[VQVAE]
) -> None:
    site.at("/1", whole(checkpoint))
    fetched = pretrained.find(weights(sha256=sha256(checkpoint)))
    loaded = load_jukebox(fetched, level)
    assert loaded.architecture == LEVELS[level]
    audio = torch.randn(1, 1, 512)
    assert torch.equal(loaded(audio), vqvaes[level](audio))


def test_another_file_than_openai_s(site: Site, cache: Path, checkpoint: bytes) -> None:
    site.at("/1", whole(checkpoint))
    site.at("/2", status(404))
    with pytest.raises(UserError, match="sha256 is") as caught:
        pretrained.find(weights())
    assert f"{site.address}/2: 404" in str(caught.value)
    assert pretrained.SHA256 in str(caught.value)
    assert f"weights.sha256={sha256(checkpoint)}" in str(caught.value)
    assert not cache.exists()
    assert pretrained.find(weights(sha256=sha256(checkpoint))) == cache


def test_a_cached_file_is_checked_before_use(site: Site, cache: Path, checkpoint: bytes) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(checkpoint[:-1] + b"?")
    site.at("/1", whole(checkpoint))
    pretrained.find(weights(sha256=sha256(checkpoint)))
    assert cache.read_bytes() == checkpoint


def test_a_file_that_cannot_be_fetched_leaves_the_cached_one(site: Site, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"another")
    with pytest.raises(UserError, match=r"/1: 404 .*\n.*/2: 404"):
        pretrained.find(weights())
    assert os.listdir(cache.parent) == [cache.name]
    assert cache.read_bytes() == b"another"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda handler: None, "without response"),
        (redirect("file:///etc/hostname"), "No connection adapters"),
        (redirect("http://["), "Invalid|Failed to parse"),
    ],
    ids=["nothing", "file", "broken"],
)
def test_what_an_address_answered_is_said(site: Site, answer: Answer, message: str) -> None:
    site.at("/1", answer)
    with pytest.raises(UserError, match=f"/1: .*({message})"):
        pretrained.find(weights())


def test_a_cache_that_cannot_be_written_to(site: Site, cache: Path) -> None:
    cache.parents[2].parent.write_text("a file")
    with pytest.raises(UserError, match=r"vqvae\.pth\.tar: cannot be written"):
        pretrained.find(weights())


def test_offline_the_message_says_what_to_put_where(
    offline: tuple[str, str], cache: Path, checkpoint: bytes
) -> None:
    with pytest.raises(UserError, match="cannot be fetched") as caught:
        pretrained.find(weights())
    said = str(caught.value)
    assert all(f"{url}: Connection refused" in said for url in offline)
    assert str(cache) in said
    assert "weights=file weights.file=" in said
    # Both ways it names are ways out.
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(checkpoint)
    assert pretrained.find(weights(sha256=sha256(checkpoint))) == cache
    assert pretrained.find(weights("file", file=str(cache))) == cache


def test_a_hostile_file_in_its_place(site: Site, cache: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = saved({"model": {}, "step": 0, "hps": Hostile(mark), "opt": None})
    site.at("/1", whole(hostile))
    site.at("/2", whole(hostile))
    with pytest.raises(UserError, match="sha256 is"):
        pretrained.find(weights())
    assert not cache.exists()
    # Even with its sum accepted.
    accepted = pretrained.find(weights(sha256=sha256(hostile)))
    with pytest.raises(UserError, match="not a checkpoint that can be read safely"):
        load_jukebox(accepted, 0)
    assert not mark.exists()
    torch.load(accepted, weights_only=False)
    assert mark.exists()  # The file was a hostile one.


# --- the user's file --------------------------------------------------------------------------


def test_a_file_of_the_user_s(tmp_path: Path) -> None:
    path = tmp_path / "vqvae.pth.tar"
    with pytest.raises(UserError, match=r"weights\.file: .*vqvae\.pth\.tar: no such file"):
        pretrained.find(weights("file", file=str(path)))
    path.write_bytes(b"weights")
    assert pretrained.find(weights("file", file=str(path))) == path
    for known in (sha256(b"weights"), sha256(b"weights").upper()):
        assert pretrained.find(weights("file", file=str(path), sha256=known)) == path
    with pytest.raises(UserError, match=sha256(b"other")) as caught:
        pretrained.find(weights("file", file=str(path), sha256=sha256(b"other")))
    assert f"weights.sha256={sha256(b'weights')}" in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "g" * 64, "0" * 65, 7])
def test_what_is_no_sum_is_named(tmp_path: Path, value: object) -> None:
    path = tmp_path / "params.yaml"
    text = params.compose([], ROOT / "conf")
    assert "  sha256: null" in text
    path.write_text(text.replace("  sha256: null", f"  sha256: {value}"))
    with pytest.raises(UserError, match=r"weights\.sha256"):
        params.load(path)


# --- the stages -------------------------------------------------------------------------------


def composed(folder: Path, *overrides: str) -> params.Params:
    path = folder / "params.yaml"
    path.write_text(params.compose(["scale=tiny", *overrides], ROOT / "conf"))
    return params.load(path)


def test_the_weights_are_asked_for_before_any_work(
    offline: object, cache: Path, checkpoint: bytes, tmp_path: Path
) -> None:
    def check(*overrides: str) -> None:
        p = composed(tmp_path, *overrides)
        pretrained.check(p.weights, p.inits)

    known = f"weights.sha256={sha256(checkpoint)}"
    with pytest.raises(UserError, match="cannot be fetched"):
        check("weights=jukebox", known)
    with pytest.raises(UserError, match="no such file"):
        check("weights=file", "weights.file=/nowhere")
    check("weights=jukebox", "inits=[scratch]")
    check("weights=pretrain")
    cache.write_bytes(checkpoint)
    check("weights=jukebox", known)


def run(stage: str, folder: Path, *urls: str) -> subprocess.CompletedProcess[str]:
    """`python -m stages.<stage>` in a project, with a cache there and the addresses replaced.

    They are no parameter, so that no experiment can be made to fetch from anywhere.
    """
    (folder / "sitecustomize.py").write_text(
        f"import jukesep.pipeline.pretrained\njukesep.pipeline.pretrained.URLS = {urls!r}\n"
    )
    env = os.environ | {
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "JUKESEP_CACHE": str(folder / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-m", *f"stages.{stage}".split()]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_stage_weights_fetches(
    site: Site, tmp_path: Path, checkpoint: bytes, vqvaes: list[VQVAE]
) -> None:
    url = site.at("/file", whole(checkpoint))
    composed(
        tmp_path,
        "weights=jukebox",
        f"weights.sha256={sha256(checkpoint)}",
        "weights.level=1",
    )
    ended = run("weights pretrained", tmp_path, nobody(), url)
    assert ended.returncode == 0, ended.stderr
    assert "non-commercial use only" in ended.stderr
    loaded = load_jukebox(tmp_path / "runs/weights/pretrained/vqvae.pth.tar")
    assert loaded.architecture == LEVELS[1]
    audio = torch.randn(1, 1, 512)
    assert torch.equal(loaded(audio), vqvaes[1](audio))


def test_the_stage_prepare_offline(tmp_path: Path) -> None:
    composed(tmp_path, "weights=jukebox")
    ended = run("prepare", tmp_path, nobody())
    assert ended.returncode == 1
    assert "error: Jukebox's weights: cannot be fetched." in ended.stderr
    assert "Traceback" not in ended.stderr
    assert str(tmp_path / "cache/jukebox/models/5b/vqvae.pth.tar") in ended.stderr
    assert not (tmp_path / "data").exists()
