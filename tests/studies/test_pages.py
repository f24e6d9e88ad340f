"""The pages of ablations and seeds: written again from the kept scores, and from new ones."""

import csv
import io
from pathlib import Path

import pytest
import yaml

from jukesep.base import params
from jukesep.base.errors import UserError
from studies import (
    ablations,
    excerpt,
    experiments,
    more_songs,
    seeds,
    songs,
    spleeter,
    stems,
    systems,
    variants,
)

ROOT = Path(__file__).parents[2]
ABLATIONS = {one.name: one for one in ablations.ABLATIONS}
STEMS = ("drums", "bass", "other", "vocals")


def test_the_committed_pages_are_of_the_kept_scores(tmp_path):
    cells = ablations.load(ROOT / ablations.SCORES)
    assert (ROOT / ablations.PAGE).read_text(encoding="utf-8") == ablations.page(cells)
    assert {cell.ablation for cell in cells} == set(ABLATIONS)
    assert all(cell.commit for cell in cells)
    picture = tmp_path / "budget.png"
    ablations.draw(cells, picture)
    assert picture.read_bytes() == (ROOT / ablations.PICTURE).read_bytes()
    found = seeds.load(ROOT / seeds.SCORES)
    assert (ROOT / seeds.PAGE).read_text(encoding="utf-8") == seeds.page(found)


def test_every_file_of_conf_ablation_belongs_to_an_ablation_and_changes_it():
    files = {file for one in ablations.ABLATIONS for file in one.variants.values()}
    assert files == {path.stem for path in (ROOT / "conf/ablation").glob("*.yaml")}
    default = params.compose(["ablation=default"], ROOT / "conf")
    composed = {default}
    for one in ablations.ABLATIONS:
        for file in set(one.variants.values()) - {"default"}:
            text = params.compose([f"ablation={file}", "seed=1"], ROOT / "conf")
            p = params.Params.model_validate(yaml.safe_load(text))
            assert p.stems == ("drums", "vocals")
            assert set(p.inits) == set(one.inits)
            assert (p.seed, p.stage2.checkpoints) == (1, (p.stage2.steps,))
            assert p.stage2.steps * p.stage2.batch * p.stage2.segment == 1150 * 4096
            composed.add(text)
    assert len(composed) == len(files)
    demo = yaml.safe_load(params.compose([], ROOT / "conf"))["stage2"]["checkpoints"]
    assert demo[0] == yaml.safe_load(default)["stage2"]["steps"]


@pytest.mark.parametrize(
    ("differences", "says"),
    [
        ((0.1, 0.2, 0.3), "better under every seed: +0.20 dB (+0.10 to +0.30)"),
        ((-0.5, -0.1, -0.3), "worse under every seed: -0.30 dB (-0.50 to -0.10)"),
        ((0.4, -0.1, 0.3), "no consistent difference: +0.20 dB (-0.10 to +0.40)"),
        ((0.0, 0.2, 0.4), "no consistent difference: +0.20 dB (+0.00 to +0.40)"),
        ((0.2,), "one seed only: +0.20 dB"),
    ],
)
def test_a_verdict_needs_all_seeds(differences, says):
    assert ablations.verdict(differences) == says


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """An entered folder; experiments that are named, not run, and their scores."""
    names = {}
    monkeypatch.setattr(experiments, "run", lambda name, overrides: names.update({name: overrides}))
    monkeypatch.setattr(experiments, "commit", lambda: "abc1234")
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    (tmp_path / "params.yaml").write_text(params.compose(["scale=tiny"], ROOT / "conf"))
    monkeypatch.chdir(tmp_path)
    return names


def test_the_ablations_run_and_compare_seed_by_seed_on_the_seen_songs(ran, monkeypatch, capsys):
    def scores(songs, system, name):
        assert system == "pretrained_late"
        base = 2.0 + int(name[-1]) + (5 if songs == "held_out" else 0)
        base -= 0.5 * ("independent" in name)
        return {"drums": base, "vocals": base + 1}

    monkeypatch.setattr(experiments, "scores", scores)
    ablations.main(["blend"])
    assert capsys.readouterr().out == "docs/ablations.md\n"
    assert ran["ablation-independent_blend-2"] == ["ablation=independent_blend", "seed=2"]
    assert len(ran) == 6
    page = ablations.PAGE.read_text()
    assert page.count("Not run yet") == len(ABLATIONS) - 1
    assert "| shared | pretrained | 2.50 | 3.50 | 4.50 | 3.50 | (8.50) |" in page
    assert "| independent | pretrained | 2.00 | 3.00 | 4.00 | 3.00 | (8.00) |" in page
    assert (
        "- independent against shared, pretrained: worse under every seed: "
        "-0.50 dB (-0.50 to -0.50)." in page
    )
    assert "of commit abc1234" in page
    kept = ablations.load()
    assert len(kept) == 2 * 3 * 2
    ablations.main(["chunking"])  # keeps what was run before
    assert [cell for cell in ablations.load() if cell.ablation == "blend"] == kept
    assert not ablations.PICTURE.exists()
    with pytest.raises(SystemExit):
        ablations.main(["nothing"])


def test_scores_of_today_s_code_are_not_run_again_for_another_ablation(ran, monkeypatch):
    """The default is in most ablations; an init that it was not scored for is run."""
    monkeypatch.setattr(experiments, "scores", lambda *_: {"drums": 1.0, "vocals": 2.0})
    monkeypatch.setattr(experiments, "unchanged", lambda commit: commit == "abc1234")
    ablations.main(["blend"])
    ran.clear()
    ablations.main(["blend", "chunking"])
    assert list(ran) == [f"ablation-hard_chunks-{seed}" for seed in ablations.SEEDS]
    kept = ablations.load()
    assert [cell.variant for cell in kept if cell.ablation == "chunking"][:2] == ["exact"] * 2
    monkeypatch.setattr(experiments, "unchanged", lambda commit: False)
    ran.clear()
    ablations.main(["chunking"])
    assert len(ran) == 6
    ran.clear()
    monkeypatch.setattr(experiments, "unchanged", lambda commit: True)
    ablations.main(["codebook-init"])  # of scratch
    assert "ablation-default-0" in ran


def test_the_budgets_say_where_scratch_catches_up(ran, monkeypatch):
    steps = {"20": 0.4, "40": 0.3, "fault": 0.1, "480": 0.0}

    def scores(songs, system, name):
        words = name.removesuffix(name[-2:]).removesuffix("default").split("_")[-1] or "fault"
        gain = steps.get(words, 0.1) if system.startswith("pretrained") else 0.0
        return {"drums": 2.0 + gain, "vocals": 2.0 + gain}

    monkeypatch.setattr(experiments, "scores", scores)
    budget = ABLATIONS["stage1-budget"]
    cells = ablations.run(budget, [])
    lines = ablations.conclusions(budget, cells)
    assert len(lines) == len(budget.variants) == 4
    assert lines[0].endswith("better under every seed: +0.40 dB (+0.40 to +0.40).")
    assert "no consistent difference" in lines[-1]


def test_the_seeds_run_and_have_means_and_spreads(ran, monkeypatch):
    base = {"scaled_mixture": 1.0, "scratch_early": 1.5, "scratch_late": 2.0}
    base |= {"pretrained_early": 2.5, "pretrained_late": 3.0}
    base |= {"static_equaliser": 2.6, "refined": 3.5}
    untrained = "scaled_mixture", "static_equaliser"
    shifts = {None: 0.0, "seed-1": 0.3, "seed-2": -0.3}

    def scores(songs, system, name=None):
        value = base[system] + (shifts[name] if system not in untrained else 0.0)
        step = {} if system in untrained else {"step": 3 if "early" in system else 6}
        return {**step, **dict.fromkeys((*STEMS, "total"), value)}

    monkeypatch.setattr(experiments, "scores", scores)
    seeds.main([])
    assert ran == {"seed-1": ["seed=1"], "seed-2": ["seed=2"]}
    page = seeds.PAGE.read_text()
    assert "| mixture / 4 | 1.00 | 1.00 | 1.00 | 1.00 | 0.00 |" in page
    assert page.count("| pretrained, step 6 | 3.00 | 3.30 | 2.70 | 3.00 | 0.60 |") == 2
    assert "| pretrained over mixture / 4, late | 2.00 | 2.30 | 1.70 | 2.00 | 0.60 |" in page
    assert "| pretrained over scratch, late | 1.00 | 1.00 | 1.00 | 1.00 | 0.00 |" in page
    assert "| pretrained over its early checkpoint, late | 0.50 | 0.50 | 0.50 |" in page
    assert "| scratch, step 3 | 1.50 (0.60) | 1.50 (0.60) | 1.50 (0.60) | 1.50 (0.60) |" in page
    rows = list(csv.DictReader(io.StringIO(seeds.SCORES.read_text())))
    assert len(rows) == 2 * 7 * 5 + len(seeds.GAINS)
    name = "pretrained over static equaliser, late"
    assert f"| {name} | seen | 0.50 | 0.10 | no, by 0.40 dB |" in page
    assert "| pretrained over scratch, late | seen | 0.00 | 1.00 | yes |" in page
    seeds.PAGE.unlink()
    seeds.main(["--write"])
    assert seeds.PAGE.read_text() == page


def test_the_excerpt_is_scored(tmp_path, capsys):
    from commands import STEM, save_models

    save_models(tmp_path)
    excerpt.main(["--models", str(tmp_path)])
    head, stem, mean = capsys.readouterr().out.splitlines()
    assert head.split() == ["SDR", "in", "dB", "plain", "refined", "mixture", "/", "4"]
    assert stem.split()[0] == STEM
    assert stem.split()[1:] == mean.split()[1:]


@pytest.mark.parametrize(
    "study", [ablations, more_songs, seeds, songs, spleeter, stems, systems, variants]
)
def test_without_kept_scores_no_page_is_written(study, entered):
    with pytest.raises(UserError, match=r"csv: no such file. Restore it with git, or run without"):
        study.main(["--write"])
    assert list(entered.iterdir()) == []
