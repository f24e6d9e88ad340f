"""The training of a peer: by the one loop, resumed to the bit, and read as a system."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import RATE, make_recipe, make_run

from jukesep import audio
from jukesep.base.errors import Interrupted, UserError
from jukesep.peers.common import registry
from jukesep.peers.common.task import Separation
from jukesep.pipeline import peers
from jukesep.songs.manifest import MIXTURE, STEMS, Song
from jukesep.systems import peer as systems
from jukesep.training.loop import train
from jukesep.training.segments import Segments

SIZES = {"hidden": 8, "layers": 2, "window": 256}
PARTS = (MIXTURE, *STEMS)


@pytest.fixture
def songs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    stems = {stem: 0.1 * rng.standard_normal((2, 6000)) for stem in STEMS}
    for part, samples in {**stems, MIXTURE: sum(stems.values())}.items():
        audio.write(tmp_path / f"song/{part}.wav", samples, RATE, "FLOAT")
    return [Song("song", "train", "seen", tmp_path / "song", 6000)]


def task(seed=0):
    torch.manual_seed(seed)
    about = {"name": "open_unmix", "network": SIZES, "sample_rate": RATE, "seed": seed}
    return Separation(registry.build("open_unmix", SIZES), seed, about)


def fit(songs, folder, steps=6):
    recipe = make_recipe(steps=steps)
    segments = Segments(songs, PARTS, recipe.segment, 0, "peer")
    valid = Segments(songs, PARTS, recipe.segment, 0, "valid", augment=False)
    train(task(), recipe, segments, valid, [steps], make_run(folder))


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_dropout_depends_on_the_seed_and_the_step_alone(songs):
    def loss(seed, step, before=0):
        one = task()
        one.seed = seed
        torch.manual_seed(before)
        batch = one.prepare(torch.randn(2, 5, 2048, generator=torch.Generator().manual_seed(1)))
        return float(one.loss(batch, step)[0].detach())

    assert loss(0, 3) == loss(0, 3, before=7)
    assert len({loss(0, 3), loss(0, 4), loss(1, 3)}) == 3


@pytest.mark.parametrize("after", [1, 4])
def test_an_interrupted_training_ends_in_the_same_bits(songs, monkeypatch, after):
    fit(songs, "whole")
    loss = Separation.loss

    def stopped(self, batch, step):
        if step == after - 1:
            signal.raise_signal(signal.SIGTERM)
        return loss(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(Separation, "loss", stopped)
        with pytest.raises(Interrupted, match=f"after step {after} of 6"):
            fit(songs, "run")
    assert not Path("run").exists()
    fit(songs, "run")
    for name in ("log.csv", "checkpoints/6.pt"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_checkpoint_is_a_system(songs):
    fit(songs, "run")
    path = "run/checkpoints/6.pt"
    plain, filtered = systems.load(path)
    assert (plain.name, filtered.name) == ("open_unmix", "open_unmix_wiener")
    mixture = audio.read(songs[0].file(MIXTURE))
    stems = plain(mixture, RATE)
    assert {stem: one.shape for stem, one in stems.items()} == dict.fromkeys(STEMS, (2, 6000))
    # The statistics of the batch normalisation are those of the training.
    assert weights(path)["targets.drums.bn1.num_batches_tracked"] == 6
    assert not np.allclose(stems["bass"], filtered(mixture, RATE)["bass"])
    with pytest.raises(UserError, match="works at 8000 Hz, the song has 44100 Hz"):
        plain(mixture, 44100)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("peer"),
        lambda content: content["peer"].update(name="demucs9"),
        lambda content: content["model"].pop("targets.drums.fc1.weight"),
        lambda content: content["peer"]["network"].update(hidden=10),
    ],
)
def test_another_file_is_refused(songs, change):
    fit(songs, "run", steps=2)
    content = torch.load("run/checkpoints/2.pt", weights_only=True)
    change(content)
    torch.save(content, "other.pt")
    with pytest.raises(UserError, match="not a checkpoint of a peer"):
        systems.load("other.pt")
    with pytest.raises(UserError, match="no such file"):
        systems.load("missing.pt")


@pytest.mark.parametrize("content", [b"", b"PK", b"\x80\x02.", b"text"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "damaged.pt").write_bytes(content)
    with pytest.raises(UserError, match="not a checkpoint of a peer"):
        systems.load(tmp_path / "damaged.pt")


def test_a_peer_is_not_trained_by_several_processes(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="without torchrun"):
        peers.peer(None, "demucs")
