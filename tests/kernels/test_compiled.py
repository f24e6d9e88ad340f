"""Where compiled functions are kept, and what the user is told. It holds what we use of numba."""

import contextlib
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType

import numba
import pytest

from jukesep.kernels.cpu import compiled

ROOT = Path(__file__).parents[2]
LINE = "jukesep: compiling the CPU kernels for this machine (once, about 30 s)\n"
# One small kernel, for two types: numba compiles it twice.
SEARCH = """
import torch
from jukesep.kernels.cpu import codebook

def search(_=0):
    for number in (torch.float32, torch.float64):
        codebook.nearest(torch.zeros(1, 2, 3, dtype=number), torch.ones(4, 2, dtype=number))
    return codebook._first_smallest.stats
"""
COUNT = (
    SEARCH
    + """
stats = search()
print(codebook.__file__, sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""
)
IN_A_WORKER = (
    SEARCH
    + """
from torch.utils.data import DataLoader

class Searches(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return sum(search().cache_misses.values())

print(*DataLoader(Searches(), num_workers=1, multiprocessing_context="fork"))
"""
)


@pytest.fixture
def run(tmp_path):
    """Runs code in a process whose cache is in tmp_path: its output and errors."""

    def run(code, root=ROOT, cache="cache", stderr=subprocess.PIPE):
        env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
        env |= {"XDG_CACHE_HOME": str(tmp_path / cache), "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split(), done.stderr

    return run


def copy(root):
    shutil.copytree(ROOT / "jukesep", root / "jukesep", ignore=shutil.ignore_patterns("*cache*"))
    return root


@pytest.mark.skipif(sys.platform != "linux", reason="XDG_CACHE_HOME is Linux's")
def test_functions_are_compiled_once_for_all_copies_of_the_source(run, tmp_path):
    (_, misses, _), said = run(COUNT)
    assert said == LINE
    assert misses == "2"

    other = copy(tmp_path / "other")
    (file, misses, hits), said = run(COUNT, other)
    assert Path(file).is_relative_to(other)
    assert (misses, hits, said) == ("0", "2", "")
    assert not list(other.rglob("*.nbi")), "kept beside the source"

    # What one file defines becomes part of functions of others.
    with (other / "jukesep/kernels/cpu/tiles.py").open("a") as source:
        source.write("# changed\n")
    (_, misses, _), said = run(COUNT, other)
    assert (misses, said) == ("2", LINE)


def test_a_terminal_shows_a_bar(run):
    termios = pytest.importorskip("termios", reason="this system has no terminals")
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with ThreadPoolExecutor(1) as reader, open(theirs, "wb") as terminal:
        reading = reader.submit(_everything, ours)  # at once: a terminal holds a few lines only
        run(COUNT, stderr=terminal)
        terminal.close()
        said = reading.result()
    os.close(ours)
    assert said.count(LINE.strip().encode()) == 1
    assert b"compiling first_smallest: " in said
    assert b" functions" in said


def _everything(terminal):
    """What is written to a terminal until it is closed."""
    said = b""
    with contextlib.suppress(OSError):  # Linux's end of file
        while part := os.read(terminal, 2**16):
            said += part
    return said


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")
def test_a_process_that_prepares_batches_compiles_without_a_word(run):
    assert run(IN_A_WORKER) == (["tensor([2])"], "")


def test_what_a_module_of_another_name_compiled_is_not_taken():
    """numba's files name the module, and cannot be loaded when it has moved."""

    def function():
        pass

    moved = FunctionType(function.__code__, {"__name__": "elsewhere"})
    one, two = (compiled.ByContent(each, __file__).get_cache_path() for each in (function, moved))
    assert one != two


def test_numbas_settings_are_left_as_they_were(monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "IPythonCacheLocator")
    with pytest.raises(RuntimeError, match="no locator available"):
        compiled.compiled(lambda: None)
    assert numba.config.CACHE_LOCATOR_CLASSES == "IPythonCacheLocator"
