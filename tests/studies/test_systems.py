"""docs/systems.md: its runs, and its page from the kept scores and costs."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.peers.common import registry
from studies import experiments, records, systems
from studies.systems_costs import Cost

ROOT = Path(__file__).parents[2]


def score(system, total, budget=1.0, seed=0, songs="seen", **stems):
    numbers = dict.fromkeys(("drums", "bass", "other", "vocals"), total) | stems
    return systems.Score(system, budget, seed, songs, **numbers, total=total, commit="abc1234")


def everything(ours=2.7, floor=2.6):
    totals = {name: 3.0 + place for place, name in enumerate(systems.PEERS)}
    totals |= {systems.PLAIN: ours, systems.REFINED: ours + 0.4, systems.CONTROL: 5.0}
    totals |= {systems.EQUALISER: floor, "scaled_mixture": 1.2, "mixture": -4.8}
    totals |= {"ideal_ratio_mask": 9.4}
    return [
        score(name, total + budget - 1 - (songs == "held_out"), budget, seed, songs)
        for name, total in totals.items()
        for budget, seed in ((1.0, 0), (1.0, 1), (0.25, 0))
        for songs in ("seen", "held_out")
    ]


COSTS = {
    name: Cost(name, 1_234_567, 130.0, 22.0, "a processor", "abc1234")
    for name in (*systems.TRAINED, systems.EQUALISER)
}


def rows(page, heading):
    part = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_committed_page_is_of_the_kept_scores(tmp_path):
    found, costs = systems.load_scores(), systems.load_costs()
    assert (ROOT / systems.PAGE).read_text(encoding="utf-8") == systems.page(found, costs)
    assert {one.system for one in found} == {*systems.TRAINED, *systems.UNTRAINED}
    systems.draw(found, costs, tmp_path / "compute.png")
    assert (tmp_path / "compute.png").read_bytes() == (ROOT / systems.PICTURE).read_bytes()


def test_the_page_orders_systems_by_what_they_score():
    page = systems.page(everything(), COSTS)
    seen = rows(page, "Songs of instruments heard in training")
    totals = [float(row[-1].strip("*")) for row in seen]
    assert totals == sorted(totals)
    assert len(seen) == len(systems.TRAINED) + len(systems.UNTRAINED)
    (ours,) = (row for row in seen if row[0] == "**jukesep**")
    assert ours[1:4] == ["130", "1.23 M", "22"]
    held_out = rows(page, "Songs of held-out instruments")
    assert {row[0]: row[-1] for row in held_out}["**jukesep**"] == "**1.70**"
    compute = {row[0]: row[1:] for row in rows(page, "SDR against the compute of training")}
    assert compute["jukesep"] == ["1.95", "2.70", "0.95", "1.70"]


def test_a_system_that_was_not_run_at_a_budget_says_so():
    found = [one for one in everything() if one.budget != 0.25 or one.system != "demucs"]
    compute = rows(systems.page(found, COSTS), "SDR against the compute of training")
    assert {row[0]: row[1] for row in compute}["Demucs (version 2 form)"] == "not run"


def test_a_system_whose_costs_were_not_measured_says_so(tmp_path):
    some = {name: cost for name, cost in COSTS.items() if name != "demucs"}
    page = systems.page(everything(), some)
    (row,) = (r for r in rows(page, "Songs of held-out instruments") if r[0].startswith("Demucs"))
    assert row[1:4] == ["not measured"] * 3
    systems.draw(everything(), some, tmp_path / "compute.png")


def test_the_page_says_which_runs_are_missing():
    assert "Not run yet" not in systems.page(everything(), COSTS)
    page = systems.page([one for one in everything() if (one.budget, one.seed) == (1, 0)], COSTS)
    assert (
        "**Not run yet**: 1 times the steps under seed 1; 0.25 times the steps under seed 0."
        in page
    )


@pytest.mark.parametrize(("ours", "said"), [(2.7, "0.10 dB above"), (2.5, "0.10 dB below")])
def test_the_verdict_says_also_where_the_method_loses(ours, said):
    lines = systems.page(everything(ours=ours), COSTS).split("\n")
    first = next(line for line in lines if line.startswith("- At the demo's compute"))
    assert f"{said} a static equaliser" in first
    assert any("5 other networks" in line and " 5 score at least 0.3 dB" in line for line in lines)
    below = [line for line in lines if "plain stems score less than the equaliser" in line]
    assert bool(below) == (ours < 2.6)


def test_a_network_is_above_ours_only_under_every_seed():
    found = [
        dataclasses.replace(one, total=2.9) if (one.system, one.seed) == ("demucs", 1) else one
        for one in everything()
    ]
    (line,) = (one for one in systems.page(found, COSTS).split("\n") if "5 other networks" in one)
    assert " 4 score at least 0.3 dB more" in line
    assert "HDemucs" in line
    assert systems.NAMES["demucs"] not in line


def test_scores_and_costs_are_read_as_they_were_written(tmp_path):
    found = everything()
    path = tmp_path / "scores.csv"
    path.write_text(records.text(systems.Score, found))
    assert systems.load_scores(path) == found
    path.write_text(records.text(Cost, COSTS.values()))
    assert systems.load_costs(path) == COSTS


def test_each_run_scales_all_steps_alike():
    demo = yaml.safe_load(params.compose(["peers=all"]))
    for run in systems.RUNS:
        without = params.compose(run.overrides([]))
        assert yaml.safe_load(without)["peers"] == {}
        p = params.Params.model_validate(yaml.safe_load(params.compose(run.overrides())))
        assert (p.seed, p.inits) == (run.seed, ("pretrained",))
        # At the demo's own budget and seed, what it has trained is found again.
        scaled = [round(run.budget * step) for step in demo["stage2"]["checkpoints"]]
        assert list(p.stage2.checkpoints) == scaled
        assert p.stage2.steps == round(run.budget * demo["stage2"]["steps"])
        chosen = {name: recipe.steps for name, recipe in p.peers if recipe}
        assert chosen == {
            name: round(run.budget * recipe["steps"]) for name, recipe in demo["peers"].items()
        }
    assert len({run.name for run in systems.RUNS}) == len(systems.RUNS)


@pytest.mark.parametrize("changed", ["nothing", "our models", "open_unmix", "demucs"])
def test_what_has_kept_scores_of_today_s_code_is_not_run_again(
    monkeypatch, tmp_path, capsys, changed
):
    run = systems.Run(0.25, 0)
    kept = [one for one in everything() if one.seed == 0]
    again = {
        "nothing": [],
        "our models": [*systems.TRAINED, *systems.UNTRAINED],
        "open_unmix": ["open_unmix", "open_unmix_wiener"],
        "demucs": ["demucs"],
    }[changed]
    monkeypatch.setattr(systems, "SCORES", tmp_path / "scores.csv")
    systems.write_text(systems.SCORES, records.text(systems.Score, kept))

    def new(_run, of):
        return [dataclasses.replace(one, total=0.5) for one in here if one.system in of]

    here = [one for one in kept if one.budget == run.budget]
    ran = []
    monkeypatch.setattr(systems, "scores", new)
    monkeypatch.setattr(experiments, "run", lambda name, how: ran.append((name, how[0])))
    monkeypatch.setattr(
        experiments, "unchanged", lambda _commit, peer: changed not in ("our models", peer)
    )
    systems._run(run)
    peers = [name for name in registry.NAMES if name in again]
    assert ran == ([(run.name, f"peers=[{','.join(peers)}]")] if again else [])
    said = capsys.readouterr().out
    there = len({one.system for one in here}) - len(again)
    expected = f"{run.name}: {there} systems have scores of today's code (commit abc1234)"
    assert (expected in said) == (there > 0)
    found = systems.load_scores(systems.SCORES)
    still = [one for one in kept if one in here or one.system not in again]  # of today's code
    assert {(one.system, one.budget): one.total for one in found if one.songs == "seen"} == {
        (one.system, one.budget): 0.5 if one in here and one.system in again else one.total
        for one in still
        if one.songs == "seen"
    }
    assert len(found) == len(still)


def test_an_experiment_is_read_for_every_system(monkeypatch):
    asked = []

    def scores(songs, system, experiment):
        asked.append(experiment)
        return {"drums": 1.0, "bass": 2.0, "other": 3.0, "vocals": 4.0, "total": 2.5, "step": 9}

    monkeypatch.setattr(experiments, "scores", scores)
    found = systems.scores(systems.Run(0.25, 1), ["refined", "demucs"])
    assert set(asked) == {"systems-0_25x-seed-1"}
    assert {(one.system, one.songs) for one in found} == {
        (system, songs) for system in ("refined", "demucs") for songs in ("seen", "held_out")
    }
    assert dataclasses.asdict(found[0])["total"] == 2.5


def test_without_results_the_page_says_how_to_get_them():
    with pytest.raises(UserError, match="no results yet"):
        systems.page([], {})
