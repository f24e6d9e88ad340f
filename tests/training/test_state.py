"""Rows of the log are means of the steps since the row before."""

import pytest
from tiny import make_recipe, reconstruction, run_training


def test_a_row_is_the_mean_of_its_steps(songs, entered):
    each = run_training(reconstruction(), songs, "each", make_recipe(log_every=1))
    pairs = run_training(reconstruction(), songs, "pairs", make_recipe(log_every=2, valid_every=6))
    assert [row["step"] for row in pairs] == ["2", "4", "6"]
    for number, row in enumerate(pairs):
        for name in ("loss", "l2", "linf", "multispectral", "commit", "grad_norm"):
            steps = [float(one[name]) for one in each[2 * number : 2 * number + 2]]
            assert float(row[name]) == pytest.approx(sum(steps) / 2, rel=1e-5)
            assert steps[0] != steps[1]
