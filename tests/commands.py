"""`jukesep` as its entry point runs it, in this process, and small models and sounds for it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from jukesep import cli
from jukesep.model.jukebox import save_encoder, save_jukebox
from jukesep.model.vqvae import VQVAE, Architecture
from jukesep.songs.manifest import STEMS

RATE = 8000  # Hz
STEM = "vocals"
ARCHITECTURE = Architecture(width=4, depth=1, latent_dim=4, codes=8)


def noise(samples=4000, channels=2):
    """Noise of half the full scale, (samples, channels)."""
    return np.random.default_rng(0).uniform(-0.5, 0.5, (samples, channels))


def save_models(folder, init="pretrained", stem=STEM, **changes):
    """A stem's two checkpoints as the pipeline leaves them, of its own weights; their paths."""
    torch.manual_seed(STEMS.index(stem))
    vqvae = VQVAE(ARCHITECTURE)
    vqvae.codebook.restore(torch.randn(8, 4), 1.0)
    encoder = VQVAE(Architecture(**{**vars(ARCHITECTURE), **changes})).encoder
    paths = [folder / f"{stage}/{stem}_{init}/checkpoints/4.pt" for stage in ("stage1", "stage2")]
    save_jukebox(vqvae, paths[0], 4, {"sample_rate": RATE})
    save_encoder(encoder, paths[1], 4, {"sample_rate": RATE})
    return paths


def run_jukesep(*words):
    """`jukesep WORDS` in this process, as its entry point runs it."""
    app, runner = cli.app, CliRunner()

    def run():
        result = runner.invoke(app, words)
        print(result.stdout, end="")
        print(result.stderr, end="", file=sys.stderr)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        sys.exit(result.exit_code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "app", run)
        with pytest.raises(SystemExit) as end:
            cli.main()
    return end.value.code


def files_below(folder):
    """All files below a folder, those that are hidden too."""
    return sorted(path for path in Path(folder).rglob("*") if not path.is_dir())


def stems_below(folder):
    """All files below a folder but the record of what they were made from."""
    return [path for path in files_below(folder) if path.name != "separated.json"]
