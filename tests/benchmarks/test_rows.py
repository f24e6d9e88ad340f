"""The pages that benchmarks write."""

import csv
import io
import itertools
from pathlib import Path

import pytest
import yaml

from benchmarks import ablations, experiments, reading, seeds
from jukesep.base import params

ROOT = Path(__file__).parents[2]


def _reader(shift):
    """Metrics files whose numbers tell system and seed apart."""
    base = {"scaled_mixture": 1.0, "scratch_3": 1.5, "scratch_6": 2.0}
    base |= {"pretrained_3": 2.5, "pretrained_6": 3.0}

    def read(path):
        value = base[path.rsplit("/", 1)[-1].removesuffix(".json")]
        total = value if value == 1.0 else value + shift
        return dict.fromkeys(("drums", "bass", "other", "vocals", "total"), total)

    return read


def test_the_seeds_page_gives_means_and_spreads():
    readers = {0: _reader(0.0), 1: _reader(0.3), 2: _reader(-0.3)}
    page = seeds.page(readers, "tiny", [3, 6])
    assert "| scaled mixture | 1.00 | 1.00 | 1.00 | 1.00 | 0.00 |" in page
    assert "| pretrained, step 6 | 3.00 | 3.30 | 2.70 | 3.00 | 0.60 |" in page
    assert "| pretrained over scaled mixture, late | 2.00 | 2.30 | 1.70 | 2.00 | 0.60 |" in page
    assert "| pretrained over scratch, late | 1.00 | 1.00 | 1.00 | 1.00 | 0.00 |" in page
    assert "| pretrained over its early checkpoint, late | 0.50 | 0.50 | 0.50 |" in page
    assert "| scratch, step 3 | 1.50 (0.60) | 1.50 (0.60) | 1.50 (0.60) | 1.50 (0.60) |" in page


def _cells(ablation, value):
    """A score for every variant, init, seed and group of songs."""
    return [
        ablations.Cell(ablation.name, v.name, init, seed, songs, value(number, init, seed, songs))
        for number, v in enumerate(ablation.variants)
        for init in v.inits
        for seed in ablations.SEEDS
        for songs in ablations.GROUPS
    ]


def _ablation(name):
    return next(a for a in ablations.ABLATIONS if a.name == name)


@pytest.mark.parametrize("ablation", ablations.ABLATIONS, ids=lambda a: a.name)
def test_an_ablations_overrides_compose_to_parameters_of_their_own(ablation):
    composed = set()
    for variant in ablation.variants:
        overrides = ablations._overrides(variant, seed=1, step=350)
        text = params.compose(overrides, ROOT / "conf")
        p = params.Params.model_validate(yaml.safe_load(text))
        assert p.stems == ablations.STEMS
        assert set(p.inits) >= set(variant.inits)
        assert (p.seed, p.stage2.checkpoints) == (1, (350,))
        composed.add(text)
    assert len(composed) == len(ablation.variants)


def test_experiments_have_names_of_their_own_but_share_the_default():
    names = {
        (a.name, v.name, seed): ablations._experiment(a, v, seed)
        for a in ablations.ABLATIONS
        for v in a.variants
        for seed in ablations.SEEDS
    }
    defaults = sum(not v.overrides for a in ablations.ABLATIONS for v in a.variants)
    assert len(set(names.values())) == len(names) - len(ablations.SEEDS) * (defaults - 1)
    assert all(part.isalnum() for name in names.values() for part in name.split("-"))


@pytest.mark.parametrize(
    ("differences", "says"),
    [
        ((0.1, 0.2, 0.3), "better under every seed: +0.20 dB (+0.10 to +0.30)"),
        ((-0.5, -0.1, -0.3), "worse under every seed: -0.30 dB (-0.50 to -0.10)"),
        ((0.4, -0.1, 0.3), "no consistent difference: +0.20 dB (-0.10 to +0.40)"),
        ((0.0, 0.2, 0.4), "no consistent difference: +0.20 dB (+0.00 to +0.40)"),
    ],
)
def test_a_verdict_needs_all_seeds(differences, says):
    assert ablations.verdict(differences) == says


def test_the_ablations_page_compares_seed_by_seed_on_the_seen_songs():
    blend = _ablation("blend")

    def value(number, init, seed, songs):
        base = 2.0 + seed + (5 if songs == "held_out" else 0)
        return {"drums": base - 0.5 * number, "vocals": base + 1 - 0.5 * number}

    cells = _cells(blend, value)
    page = ablations.page(cells, 160, 350)
    assert page.count("Not run yet") == len(ablations.ABLATIONS) - 1
    assert "| shared | pretrained | 2.50 | 3.50 | 4.50 | 3.50 | (8.50) |" in page
    assert "| independent | pretrained | 2.00 | 3.00 | 4.00 | 3.00 | (8.00) |" in page
    assert (
        "- independent against shared, pretrained: worse under every seed: "
        "-0.50 dB (-0.50 to -0.50)." in page
    )
    rows = list(csv.DictReader(io.StringIO(ablations.table(cells))))
    assert len(rows) == len(cells) == 2 * 3 * 2
    assert rows[0]["drums"] == "2.0"


def test_the_budgets_say_where_scratch_catches_up(tmp_path):
    budgets = _ablation("stage1-budget")

    def value(number, init, seed, songs):
        gain = 0.4 - 0.1 * number if init == "pretrained" else 0.0
        return dict.fromkeys(ablations.STEMS, 2.0 + gain)

    cells = _cells(budgets, value)
    lines = ablations._conclusions(budgets, cells)
    assert len(lines) == len(budgets.variants) >= 5
    assert lines[0].endswith("better under every seed: +0.40 dB (+0.40 to +0.40).")
    assert "no consistent difference" in lines[-1]
    ablations.draw_budgets(cells, tmp_path / "budgets.png")
    assert (tmp_path / "budgets.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert list(itertools.chain(tmp_path.iterdir())) == [tmp_path / "budgets.png"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures through /proc")
def test_reading_is_measured_and_leaves_no_file_open(tmp_path):
    reading.make(tmp_path, songs=2, seconds=1.0, subtype="PCM_16")
    cost = reading.measure(tmp_path, segment=8192, reads=20)
    assert len(cost.milliseconds) == len(cost.processor) == 20
    assert min(cost.milliseconds) > 0
    assert cost.megabytes < 10
    assert cost.open_files == 0


def _lock(md5):
    deps = [
        {"path": "jukesep/training/losses.py", "md5": md5},
        {"path": "data/prepared", "md5": "any.dir"},
    ]
    return yaml.safe_dump({"schema": "2.0", "stages": {"stage1@bass-scratch": {"deps": deps}}})


@pytest.mark.parametrize(
    ("overrides", "code", "there", "expected"),
    [
        (["seed=1"], "a", True, True),
        (["seed=2"], "a", True, False),
        (["seed=1"], "b", True, False),
        (["seed=1"], "a", False, False),
    ],
)
def test_an_experiment_is_done_while_parameters_and_code_are_its_own(
    tmp_path, monkeypatch, overrides, code, there, expected
):
    ran = {"params.yaml": params.compose(["seed=1"], ROOT / "conf"), "dvc.lock": _lock("a")}
    refs = "refs/exps/12/345/seed-1" if there else "refs/exps/12/345/seed-10"

    def output(*command):
        return refs if command[1] == "for-each-ref" else ran[command[-1].split(":")[1]]

    monkeypatch.setattr(experiments, "_output", output)
    (tmp_path / "dvc.lock").write_text(_lock(code))
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    assert experiments.done("seed-1", overrides) is expected
