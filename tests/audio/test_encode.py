"""Stems written piece by piece, without a model."""

import numpy as np
import pytest
import soundfile

from jukesep.audio import encode

RATE = 8000


def _write(folder, clip, blocks):
    """Two stems of the blocks, the second at half the level; what their files hold."""
    paths = {name: folder / f"{name}.wav" for name in ("one", "two")}
    total = sum(block.shape[1] for block in blocks)
    form = encode.FORMATS["wav16"]
    with encode.writing(paths, form, clip, RATE, 2, total) as put:
        for block in blocks:
            put({"one": block, "two": block / 2})
    return [soundfile.read(path, dtype="float32")[0].T for path in paths.values()]


@pytest.mark.parametrize("loudest", range(3))
def test_all_stems_are_lowered_by_the_loudest_block_of_all(tmp_path, loudest):
    blocks = [np.full((2, 100), 0.25, np.float32) * [[1], [-1]] for _ in range(3)]
    blocks[loudest] *= 8
    blocks = [block.astype(np.float32) for block in blocks]
    whole = np.concatenate(blocks, axis=1) * (1 - 2**-15) / 2
    one, two = _write(tmp_path, "rescale", blocks)
    np.testing.assert_allclose(one, whole, atol=2**-15)
    np.testing.assert_allclose(two, whole / 2, atol=2**-15)


def test_stems_that_fit_are_not_raised(tmp_path):
    block = np.full((2, 100), 0.25, np.float32)
    one, two = _write(tmp_path, "rescale", [block, block])
    assert (one == 0.25).all()
    assert (two == 0.125).all()
