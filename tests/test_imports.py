"""Stages that train and run no model do not wait for torch to be imported."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TORCH_FREE = (
    "stages.prepare", "stages.baselines", "stages.report", "jukesep.songs", "jukesep.params",
    "jukesep.band", "jukesep.prepare", "jukesep.audio", "jukesep.download", "jukesep.pretrained",
    "jukesep.scores", "jukesep.evaluation", "jukesep.published", "jukesep.results",
    "jukesep.results_page", "jukesep.figures", "jukesep.report", "jukesep.find_songs",
    "jukesep.score_table", "jukesep.checks", "jukesep.musdb", "jukesep.status", "jukesep.identity",
    "jukesep.launch", "jukesep.signals",
)  # fmt: skip
CODE = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    import_module(name)
    assert 'torch' not in sys.modules, f'{name} imports torch'
"""


def test_modules_without_a_model_import_no_torch():
    """In a process of its own, one module after the other: the first to import it is named."""
    command = [sys.executable, "-c", CODE, *TORCH_FREE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_module_that_says_so_is_among_them():
    for path in (ROOT / "jukesep").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "No torch here" in text or "does not import torch" in text.replace("not\n", "not "):
            assert f"jukesep.{path.stem}" in TORCH_FREE
