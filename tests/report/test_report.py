"""The report on invented results: its numbers, refusals, pictures and plot templates."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from documents import ROOT

from jukesep.base.errors import UserError
from jukesep.base.params import compose
from jukesep.peers.common import registry
from jukesep.report import figures, others, plots_page
from jukesep.report.results import read_results
from jukesep.report.write import summary, write_report
from jukesep.scoring.evaluation import COLUMNS

REPO = Path(__file__).parents[2]
TEMPLATES = REPO / ".dvc" / "plots"
STEMS = ("drums", "bass", "other", "vocals")
SONGS = {"Amber Road": "seen", "Blue, Hours": "seen", "NA": "held_out", "Öre": "held_out"}
LEVELS = {
    "static_equaliser": 2.0,
    "scaled_mixture": 1.0,
    "mixture": -5.0,
    "ideal_ratio_mask": 9.0,
}
# File of results/systems -> its systems, with their levels and last steps.
OTHERS = {
    "refined": {"refined": (4.0, 600)},
    "open_unmix": {"open_unmix": (5.0, 40), "open_unmix_wiener": (6.0, 40)},
    "hdemucs": {"hdemucs": (4.5, 30)},
}
BESIDE = {name: values for systems in OTHERS.values() for name, values in systems.items()}
PLOTS = ("scores", "checkpoints", "transfer", "ceiling", "losses", "codebook")


def make_params(**changes: Any) -> dict[str, Any]:
    params: dict[str, Any] = {
        "scale": "demo",
        "stem": "all",
        "stems": list(STEMS),
        "inits": ["pretrained", "scratch"],
        "data": {"source": "band"},
        "weights": {"source": "pretrain"},
        "stage2": {"steps": 600, "checkpoints": [150, 600]},
        "peers": {"open_unmix": {"steps": 40}, "hdemucs": {"steps": 30}, "control": None},
        "evaluate": {"split": "test"},
    }
    return params | changes


def make_results(params: dict[str, Any], root: Path, songs: dict[str, str] | None = None) -> None:
    """Scores and logs that look like an experiment's, for every stem and init of `params`."""
    songs = SONGS if songs is None else songs
    rng = np.random.default_rng(0)
    places = {song: place for place, song in enumerate(songs)}

    def rows(stem: str, system: str, init: str, step: int | str, level: float) -> Iterator[list]:
        metrics = ("sdr",) if system == "ceiling" else ("sdr", "sdr_mdx", "sdr_v4")
        for song, group in songs.items():
            for offset, metric in zip((0.0, -0.25, 0.5), metrics, strict=False):
                value = level + offset + 0.1 * STEMS.index(stem) + 0.2 * places[song]
                value -= 1.0 * (group == "held_out")
                yield [song, group, stem, system, init, step, metric, f"{value:.6f}"]

    baselines = [
        row
        for stem in params["stems"]
        for system, level in LEVELS.items()
        for row in rows(stem, system, "", "", level)
    ]
    write_csv(root / "results/systems/baselines.csv", COLUMNS, baselines)
    whole = len(params["stems"]) == len(STEMS)
    for peer, recipe in {"refined": whole, **params["peers"]}.items():
        if recipe:
            # A peer has all stems, whatever the parameters name.
            scores = [
                row
                for system, (level, step) in OTHERS[peer].items()
                for stem in STEMS
                for row in rows(stem, system, "", step, level)
            ]
            write_csv(root / f"results/systems/{peer}.csv", COLUMNS, scores)
        if recipe and peer != "refined":
            make_log(root / f"runs/peers/{peer}/log.csv", "peer", rng, 1.0)
    for stem in params["stems"]:
        for init in params["inits"]:
            level = 3.0 if init == "pretrained" else 1.2
            scores = list(rows(stem, "ceiling", init, "", level + 3))
            for place, step in enumerate(params["stage2"]["checkpoints"]):
                scores += rows(stem, "separation", init, step, level + 0.6 * place)
            write_csv(root / f"results/scores/{stem}_{init}.csv", COLUMNS, scores)
            for stage in ("stage1", "stage2"):
                make_log(root / f"runs/{stage}/{stem}_{init}/log.csv", stage, rng, level)
    if params["weights"]["source"] == "pretrain":
        make_log(root / "runs/weights/pretrained/log.csv", "stage1", rng, 1.0)


def make_log(path: Path, stage: str, rng: np.random.Generator, level: float) -> None:
    terms = ["l2", "linf", "multispectral", "commit"] if stage == "stage1" else []
    book = ["usage", "perplexity"] if stage in ("stage1", "stage2") else []
    book += ["revived"] if stage == "stage1" else []
    header = ["step", "loss", *terms, *book, "grad_norm", "lr", "valid_loss"]
    rows = []
    for step in range(10, 610, 10):
        loss = (1 + 4 / level * np.exp(-step / 150)) * (1 + 0.05 * rng.standard_normal())
        values = {"step": step, "loss": loss, "usage": 512 - 3000 / step, "lr": 1e-3}
        values |= {"perplexity": 300 * (1 - np.exp(-step / 100)) + 2, "revived": 4}
        values["valid_loss"] = 1.05 * loss if step % 100 == 0 else ""
        rows.append([values.get(name, 0.5) for name in header])
    write_csv(path, header, rows)


def write_csv(path: Path, header: Any, rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, float | None]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    make_results(make_params(), root)
    write_report(make_params(), root)
    return root


@pytest.fixture(scope="module")
def small_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stem, one init, three checkpoints, another data set, no pretraining, no groups."""
    root = tmp_path_factory.mktemp("small")
    params = make_params(
        scale="paper",
        stems=["other"],
        inits=["pretrained"],
        data={"source": "musdb"},
        weights={"source": "file"},
        stage2={"steps": 80000, "checkpoints": [20000, 40000, 80000]},
        peers={},
    )
    make_results(params, root, {"one": "test", "two": "test"})
    write_report(params, root)
    return root


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of a report's time."""
    monkeypatch.setattr(figures, "write_figures", lambda results, folder: None)


def test_songs_are_averaged_and_those_of_sdr_v4_have_a_median(tmp_path: Path) -> None:
    songs = {name: "seen" for name in "abc"}
    make_results(make_params(), tmp_path, songs)
    path = tmp_path / "results/systems/baselines.csv"
    rows = read_csv(path)
    for row in rows:
        if row["song"] == "c":
            row["value"] = str(float(row["value"]) + 3)
    write_csv(path, COLUMNS, [list(row.values()) for row in rows])
    found = read_results(make_params(), tmp_path)
    for metric, average in (("sdr", np.mean), ("sdr_mdx", np.mean), ("sdr_v4", np.median)):
        for stem in STEMS:
            values = [
                float(row["value"])
                for row in rows
                if (row["system"], row["stem"], row["metric"]) == ("mixture", stem, metric)
            ]
            assert len(values) == 3
            table = found.table(metric)
            assert table["mixture"][stem] == pytest.approx(average(values), abs=1e-9)
            assert abs(np.mean(values) - np.median(values)) > 0.5
        assert table["mixture"]["total"] == pytest.approx(
            np.mean([table["mixture"][stem] for stem in STEMS])
        )


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("inits", [["pretrained", "scratch"], ["scratch"]])
def test_the_page_says_what_was_trained_on(tmp_path: Path, inits: list[str]) -> None:
    params = make_params(stems=["other"], inits=inits)
    params["data"] = {"source": "musdb18hq", "train_on_validation": True}
    make_results(params, tmp_path, {"one": "test", "two": "test"})
    write_report(params, tmp_path)
    page = (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    assert "training included the validation songs" in page
    assert ("mixtures of the training songs" in page) == ("pretrained" in inits)
    assert "2 test songs." in page


# --- metrics --------------------------------------------------------------------------------


def test_metrics_are_means_over_the_songs_of_a_group(report: Path) -> None:
    metrics = read_json(report / "metrics/sdr/pretrained_late.json")
    # Level 3.6, 0.1 a stem, songs at 0 and 0.2; those held out are at 0.4 and 0.6, less 1.
    expected = {"step": 600, "drums": 3.7, "bass": 3.8, "other": 3.9, "vocals": 4.0, "total": 3.85}
    assert metrics == expected
    assert list(metrics) == list(expected)
    folder = report / "metrics/baselines"
    assert read_json(folder / "scaled_mixture.json")["total"] == pytest.approx(1.25)
    assert read_json(folder / "ceiling_scratch.json")["drums"] == pytest.approx(4.3)
    early = read_json(report / "metrics/sdr/scratch_early.json")
    assert (early["step"], early["drums"]) == (150, 1.3)
    for name, step, total in (("refined", 600, 4.25), ("open_unmix_wiener", 40, 6.25)):
        found = read_json(report / f"metrics/sdr/{name}.json")
        assert (found["step"], found["total"]) == (step, total)
    assert read_json(report / "metrics/sdr/static_equaliser.json")["total"] == 2.25
    assert read_json(report / "metrics/held_out/hdemucs.json")["drums"] == 4.0
    assert read_json(report / "metrics/held_out/scratch_early.json")["drums"] == 0.7


@pytest.mark.usefixtures("no_pictures")
def test_tables_and_files_round_the_same_values(tmp_path: Path) -> None:
    """To two decimals a score is 0.13, but rounded to four first, as in the files, it is 0.14."""
    params = make_params()
    make_results(params, tmp_path)
    path = tmp_path / "results/scores/drums_scratch.csv"
    text, count = re.subn(r"(,600,sdr),.*", r"\1,0.134996", path.read_text(encoding="utf-8"))
    assert count == len(SONGS)
    path.write_text(text, encoding="utf-8")
    write_report(params, tmp_path)
    drums = read_json(tmp_path / "metrics/sdr/scratch_late.json")["drums"]
    assert (drums, f"{drums:.2f}") == (0.135, "0.14")
    page = (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    assert "0.14" in page
    assert "0.13 " not in page


def test_a_run_ends_with_what_it_has_found(report: Path, small_report: Path) -> None:
    header, *rows, more = summary(report).splitlines()
    assert header.split() == ["SDR", "in", "dB", "drums", "bass", "other", "vocals", "total"]
    totals = {row.split()[0]: float(row.split()[-1]) for row in rows}
    assert (totals["pretrained_late"], totals["static_equaliser"]) == (3.85, 2.25)
    assert list(totals.values()) == sorted(totals.values())
    assert set(totals) == {file.stem for file in (report / "metrics/sdr").glob("*.json")}
    assert more == "docs/results.md has all tables, listen/index.html has the sound."
    assert summary(small_report).splitlines()[0].split() == ["SDR", "in", "dB", "other"]


def test_the_summary_orders_systems_also_around_0_and_without_a_score(tmp_path: Path) -> None:
    folder = tmp_path / "metrics/sdr"
    folder.mkdir(parents=True)
    for name, content in {
        "ours": '{"step": 2, "other": 0.0}',
        "worse": '{"step": 2, "other": -1.5}',
        "silent": '{"step": 2, "other": null}',
        "lacking": "{}",
    }.items():
        (folder / f"{name}.json").write_text(content)
    _, *rows, _ = summary(tmp_path).splitlines()
    assert [row.split() for row in rows] == [
        ["lacking", "-"], ["silent", "-"], ["worse", "-1.50"], ["ours", "0.00"],
    ]  # fmt: skip


def test_no_metrics_folder_mixes_two_kinds(report: Path) -> None:
    files = {file.relative_to(report).as_posix() for file in report.rglob("*.json")}
    trained = {f"{init}_{name}" for init in ("pretrained", "scratch") for name in ("early", "late")}
    # What is printed beside ours, since it is what they must be compared with.
    trained |= {*BESIDE, "static_equaliser"}
    untrained = LEVELS.keys() - {"static_equaliser"}
    baselines = {*untrained, "ceiling_pretrained", "ceiling_scratch"}
    expected = {f"metrics/baselines/{name}.json" for name in baselines}
    expected |= {f"metrics/held_out/baselines/{name}.json" for name in baselines}
    for folder in ("sdr", "held_out", "sdr_mdx", "sdr_v4"):
        expected |= {f"metrics/{folder}/{name}.json" for name in trained}
    for folder in ("sdr_mdx", "sdr_v4"):
        expected |= {f"metrics/{folder}/baselines/{name}.json" for name in untrained}
    assert files == expected
    assert read_json(report / "metrics/sdr_mdx/pretrained_late.json")["drums"] == 3.45
    # The median of 4.1 and 4.3.
    assert read_json(report / "metrics/sdr_v4/pretrained_late.json")["drums"] == 4.2


def test_one_stem_has_no_total(small_report: Path) -> None:
    assert list(read_json(small_report / "metrics/sdr/pretrained_late.json")) == ["step", "other"]
    assert not (small_report / "metrics/held_out").exists()
    stems = {row["stem"] for row in read_csv(small_report / "plots/checkpoints.csv")}
    assert stems == {"other"}
    transfer = read_csv(small_report / "plots/transfer.csv")
    assert [row["step"] for row in transfer] == ["20000", "40000", "80000"]
    assert {(row["scratch"], row["gain"]) for row in transfer} == {("", "")}
    assert not (small_report / "plots/transfer.png").exists()


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("steps", "names"),
    [
        ([600], ["late"]),
        ([150, 600], ["early", "late"]),
        ([150, 300, 600], ["early", "middle", "late"]),
        ([150, 300, 450, 600], ["early", "middle_1", "middle_2", "late"]),
    ],
)
def test_metrics_are_named_by_the_order_of_the_checkpoints(
    tmp_path: Path, steps: list[int], names: list[str]
) -> None:
    params = make_params(stems=["bass"], inits=["scratch"], peers={})
    params["stage2"] = {"steps": 600, "checkpoints": steps}
    make_results(params, tmp_path)
    write_report(params, tmp_path)
    files = (tmp_path / "metrics/sdr").glob("scratch_*.json")
    found = {file.stem: read_json(file)["step"] for file in files}
    assert found == {f"scratch_{name}": step for name, step in zip(names, steps, strict=True)}


@pytest.mark.usefixtures("no_pictures")
def test_reads_the_selected_files_only_and_removes_stale_metrics(tmp_path: Path) -> None:
    make_results(make_params(stems=["bass", "vocals"]), tmp_path)
    write_report(make_params(stems=["vocals"]), tmp_path)
    chosen = make_params(stems=["vocals"], inits=["scratch"], peers={"hdemucs": {"steps": 30}})
    (tmp_path / "results/systems/open_unmix.csv").write_text("not read")
    (tmp_path / "results/scores/bass_scratch.csv").write_text("not read")
    write_report(chosen, tmp_path)
    names = {file.name for file in (tmp_path / "metrics/sdr").glob("*.json")}
    systems = ("scratch_early", "scratch_late", "hdemucs", "static_equaliser")
    assert names == {f"{system}.json" for system in systems}
    assert list(read_json(tmp_path / "metrics/sdr/scratch_late.json")) == ["step", "vocals"]


@pytest.mark.usefixtures("no_pictures")
def test_undefined_v4_values_are_left_out_and_counted(tmp_path: Path) -> None:
    params = make_params(stems=["bass"], inits=["scratch"])
    make_results(params, tmp_path)
    path = tmp_path / "results/scores/bass_scratch.csv"
    lines = path.read_text().splitlines()
    for place, line in enumerate(lines):
        if ",150,sdr_v4," in line or re.match("Amber Road,.*,600,sdr_v4,", line):
            lines[place] = line.rsplit(",", 1)[0] + ",nan"
    path.write_text("\n".join(lines) + "\n")
    write_report(params, tmp_path)
    # Without the song "Amber Road".
    folder = tmp_path / "metrics/sdr_v4"
    assert read_json(folder / "scratch_late.json") == {"step": 600, "bass": 2.6}
    assert read_json(folder / "scratch_early.json") == {"step": 150, "bass": None}
    assert "3 of 18 values" in (tmp_path / "docs/results.md").read_text()


# --- refusals -------------------------------------------------------------------------------


def edit(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert re.search(old, text, re.MULTILINE)
        return re.sub(old, new, text, count=1, flags=re.MULTILINE)

    return change


SCORES = "results/scores/drums_scratch.csv"
PEER = "results/systems/open_unmix.csv"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (SCORES, None, r"drums_scratch\.csv: no such file"),
        ("results/systems/baselines.csv", None, r"baselines\.csv: no such file"),
        (PEER, None, r"open_unmix\.csv: no such file"),
        (PEER, lambda text: ",".join(COLUMNS), r"has no sdr of drums open_unmix at step 40"),
        (PEER, edit(r"^Öre,.*,open_unmix_wiener,.*\n", ""), r"'Öre' has no .* open_unmix_wiener"),
        (PEER, edit(r",40,", ",41,"), r"unexpected scores: drums open_unmix at step 41"),
        (PEER, edit(r"^Öre,.*,bass,.*\n", ""), r"'Öre' has no sdr of bass open_unmix at step 40"),
        (PEER, edit(r"(40,sdr),.*", r"\1,nan"), r"sdr of drums open_unmix at step 40 .* is nan"),
        (PEER, edit(r"^Öre,held_out", "Öre,seen"), r"'Öre' is in group 'seen', but in 'held_o"),
        ("runs/peers/hdemucs/log.csv", edit("valid_loss", "v"), r"lacks \['valid_loss'\]"),
        ("runs/stage2/drums_scratch/log.csv", None, r"stage2/drums_scratch/log\.csv: no such"),
        ("runs/weights/pretrained/log.csv", None, r"weights/pretrained/log\.csv: no such"),
        (SCORES, lambda text: "", r"drums_scratch\.csv: not a CSV file"),
        (SCORES, edit("^song,group", "group,song"), r"drums_scratch\.csv: the columns are"),
        (SCORES, edit(r"^Öre,.*,150,sdr,.*\n", ""), r"'Öre' has no sdr of drums separation scr"),
        (SCORES, edit(r"^Öre,.*,ceiling,.*\n", ""), r"'Öre' has no sdr of drums ceiling scratch"),
        (SCORES, edit(r"^(Öre,.*\n)", r"\1\1"), r"'Öre' has sdr of drums ceiling scratch twice"),
        (SCORES, edit(r"(150,sdr),.*", r"\1,nan"), r"sdr of drums .* at step 150 .* is nan"),
        (SCORES, edit(r"(150,sdr_mdx),.*", r"\1,inf"), r"sdr_mdx .* is inf"),
        (SCORES, edit(r"(150,sdr),.*", r"\1,loud"), r"value must be numbers .*'loud'"),
        (
            SCORES,
            edit(r",150,sdr,", ",300,sdr,"),
            r"unexpected scores: drums separation scratch at",
        ),
        (SCORES, edit(r",drums,", ",bass,"), r"unexpected scores: bass"),
        (SCORES, edit(r"^Öre,held_out", "Öre,seen"), r"'Öre' is in group 'seen', but in 'held_o"),
        (SCORES, edit(r"^Öre,", "Oere,"), r"'Oere' is not in results/systems/base"),
        ("runs/stage1/bass_scratch/log.csv", edit("perplexity", "p"), r"lacks \['perplexity'\]"),
        ("runs/stage1/bass_scratch/log.csv", edit(r"^20,[^,]+", "20,x"), r"'loss' holds no num"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(
    tmp_path: Path, file: str, change: Callable[[str], str] | None, message: str
) -> None:
    params = make_params(stems=["drums", "bass"])
    make_results(params, tmp_path)
    path = tmp_path / file
    if change is None:
        path.unlink()
    else:
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        write_report(params, tmp_path)
    assert path.name in str(error.value)
    assert not (tmp_path / "metrics").exists()
    assert not (tmp_path / "docs").exists()


def test_every_peer_and_each_way_to_use_it_has_a_name_and_a_mark() -> None:
    composed = yaml.safe_load(compose(["scale=tiny", "peers=all"], ROOT / "conf"))
    assert tuple(composed["peers"]) == registry.NAMES
    for peer, recipe in composed["peers"].items():
        variants = registry.build(peer, recipe["network"]).variants
        assert others.VARIANTS.get(peer, ("",)) == tuple(variants)
        for suffix in variants:
            assert others.LABELS[peer + suffix] != peer + suffix
            assert peer + suffix in figures.MARKS
    labels, marks = list(others.LABELS.values()), list(figures.MARKS.values())
    assert len(set(labels)) == len(labels)
    assert len(set(marks)) == len(marks)


# --- plots ----------------------------------------------------------------------------------


def test_plot_data(report: Path) -> None:
    checkpoints = read_csv(report / "plots/checkpoints.csv")
    found = [(row["series"], row["label"], row["step"], row["sdr"]) for row in checkpoints
             if row["stem"] == "total"]  # fmt: skip
    assert ("pretrained", "pretrained", "600", "3.85") in found
    assert ("open_unmix", "Open-Unmix", "others", "5.25") in found
    assert ("refined", "pretrained, refined", "others", "4.25") in found
    lines = {"static_equaliser", "scaled_mixture", "ideal_ratio_mask"}
    places = {
        series: {row["step"] for row in checkpoints if row["series"] == series}
        for series in {row["series"] for row in checkpoints}
    }
    steps = {"150", "600"}
    assert places == {
        **{key: steps for key in ("pretrained", "scratch")},
        **{key: steps | {"others"} for key in lines},
        **{key: {"others"} for key in BESIDE},
    }
    transfer = read_csv(report / "plots/transfer.csv")
    assert {row["gain"] for row in transfer} == {"1.8"}
    ceiling = read_csv(report / "plots/ceiling.csv")
    assert ceiling[0]["gap"] == "3.0"
    songs = read_csv(report / "plots/scores.csv")
    systems = 2 * 2 + len(BESIDE) + len(LEVELS) + 2
    assert len(songs) == len(SONGS) * len(STEMS) * systems
    assert songs[0].keys() == {*COLUMNS[:-2], "label", "sdr", "sdr_mdx", "sdr_v4"}
    assert list(dict.fromkeys(row["label"] for row in songs)) == [
        "pretrained, step 150", "pretrained, step 600", "scratch, step 150", "scratch, step 600",
        "pretrained, refined", "Open-Unmix", "Open-Unmix, Wiener filter", "HDemucs",
        "static equaliser", "mixture / 4", "the mixture as it is", "ideal ratio mask (oracle)",
        "ceiling of pretrained", "ceiling of scratch",
    ]  # fmt: skip
    assert {row["song"] for row in songs} == set(SONGS)


@pytest.mark.usefixtures("no_pictures")
def test_curves_hold_all_runs_and_are_thinned(report: Path, tmp_path: Path) -> None:
    losses = read_csv(report / "plots/losses.csv")
    runs = {(row["stage"], row["stem"], row["init"]) for row in losses}
    assert len(runs) == 2 * 4 * 2 + 1 + 2
    assert ("peer", "open_unmix", "peer") in runs
    assert ("pretrain", "mixture", "pretrained") in runs
    assert {row["name"] for row in read_csv(report / "plots/codebook.csv")} == {
        "perplexity",
        "usage",
        "revived",
    }
    params = make_params(stems=["bass"], inits=["scratch"])
    make_results(params, tmp_path)
    path = tmp_path / "runs/stage2/bass_scratch/log.csv"
    header, first, *_ = path.read_text().splitlines()
    fields = first.split(",", 1)[1]
    path.write_text("\n".join([header, *(f"{step},{fields}" for step in range(1, 5001))]))
    write_report(params, tmp_path)
    kept = [
        int(row["step"])
        for row in read_csv(tmp_path / "plots/losses.csv")
        if (row["stage"], row["name"]) == ("stage2", "loss")
    ]
    assert len(kept) == 300
    assert (kept[0], kept[-1]) == (1, 5000)


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    params = make_params(stems=["bass"])
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        make_results(params, root)
        write_report(params, root)
    files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert files == sorted(f.relative_to(second) for f in second.rglob("*") if f.is_file())
    assert [f.name for f in files if f.suffix == ".png"] == [
        "curves.png",
        "figure2.png",
        "transfer.png",
    ]
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def filled(name: str, report: Path, revisions: tuple[str, ...] = ("workspace",)) -> dict[str, Any]:
    """A template with the data as DVC puts it in: strings, and the revision in `rev`."""
    rows = read_csv(report / "plots" / f"{name}.csv")
    data = [{**row, "rev": revision} for revision in revisions for row in rows]
    text = (TEMPLATES / f"{name}.json").read_text(encoding="utf-8")
    text = text.replace('"<DVC_METRIC_DATA>"', json.dumps(data))
    text = text.replace("<DVC_METRIC_TITLE>", name)
    assert "<DVC_METRIC" not in text
    return json.loads(text)


@pytest.mark.parametrize("name", PLOTS)
def test_templates_use_columns_that_exist(name: str, report: Path) -> None:
    spec = filled(name, report)
    columns = {*read_csv(report / "plots" / f"{name}.csv")[0], "rev"}
    text = (TEMPLATES / f"{name}.json").read_text(encoding="utf-8")
    made = set(re.findall(r'"as": "(\w+)"', text))
    for names in re.findall(r'"as": \[([^\]]+)\]', text):
        made |= set(re.findall(r"\w+", names))
    used = set(re.findall(r"datum\.(\w+)", text)) | set(re.findall(r'"field": "(\w+)"', text))
    assert used <= columns | made
    # CSV values are strings: numbers must be made of them.
    assert set(re.findall(r"toNumber\(datum\.(\w+)\)", text)) >= columns & {"step", "sdr", "value"}
    assert spec["$schema"].endswith(f"v{plots_page.VEGA_LITE.split('.')[0]}.json")


@pytest.mark.parametrize("name", PLOTS)
def test_templates_render(name: str, report: Path) -> None:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(filled(name, report), vl_version=plots_page.VEGA_LITE)
    for stem in STEMS:
        assert stem in svg
    # Something is drawn, in the colours of both inits, and nothing at NaN.
    assert "#0072B2" in svg
    assert "#D55E00" in svg
    assert "NaN" not in svg


@pytest.mark.parametrize("name", PLOTS)
def test_templates_render_with_little_data(name: str, small_report: Path) -> None:
    import vl_convert

    svg = vl_convert.vegalite_to_svg(filled(name, small_report), vl_version=plots_page.VEGA_LITE)
    assert svg.startswith("<svg")
    assert "other" in svg
    assert "NaN" not in svg


def test_templates_tell_revisions_apart(report: Path) -> None:
    import vl_convert

    for name in PLOTS:
        spec = filled(name, report, ("main", "workspace"))
        svg = vl_convert.vegalite_to_svg(spec, vl_version=plots_page.VEGA_LITE)
        assert ">main<" in svg
        assert ">workspace<" in svg


def test_page_is_the_one_that_is_generated_and_needs_no_network() -> None:
    text = (REPO / plots_page.PAGE).read_text(encoding="utf-8")
    licences = (REPO / plots_page.LICENCES).read_text(encoding="utf-8")
    assert text == plots_page.page(licences), "run python -m jukesep.report.plots_page"
    assert len(text) < 1_400_000
    assert text.count("{plot_divs}") == text.count("{refresh_tag}") == 1
    assert "{scripts}" not in text
    assert not re.search(r"<(script|link)[^>]+(src|href)=", text)
    assert text.count("</script>") == 1
    for library in ("vega (BSD-3-Clause)", "vega-lite (BSD", "vega-embed (BSD"):
        assert library in text


# --- docs/results.md ------------------------------------------------------------------------


def tables(text: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    for block in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        yield lines[0], lines[2:]


SOURCES = ("Table 1", "Figure 2", "its text", "unmix_analysis")


def test_page_of_results(report: Path) -> None:
    text = (report / "docs/results.md").read_text(encoding="utf-8")
    assert "2 test songs of instruments heard in training" in text
    assert "separately 2 of held-out instruments" in text
    assert "synthetic" in text
    found = list(tables(text))
    for header, rows in found:
        assert all(len(row) == len(header) for row in rows)
        if "metric" in header:
            # One kind of metric in a table, and every row says whose data it is.
            assert len({row[header.index("metric")] for row in rows}) == 1
            assert all(row[header.index("data")] for row in rows)
    header, rows = found[0]
    assert header == ["system", "metric", "scale", "data", *STEMS, "total"]
    systems = [row[0] for row in rows]
    assert systems[: 2 * 2 + len(BESIDE) + len(LEVELS) + 2] == [
        "**pretrained**, step 150 (early)", "**pretrained**, step 600 (late)",
        "**scratch**, step 150 (early)", "**scratch**, step 600 (late)", "**pretrained**, refined",
        "Open-Unmix", "Open-Unmix, Wiener filter", "HDemucs",
        "static equaliser", "mixture / 4", "the mixture as it is", "ideal ratio mask (oracle)",
        "ceiling of pretrained", "ceiling of scratch",
    ]  # fmt: skip
    assert rows[5][1:] == ["sdr", "demo", "band", "5.10", "5.20", "5.30", "5.40", "5.25"]
    assert "Peers, trained on the same songs: Open-Unmix (40 steps), HDemucs (30 steps)." in text
    # They are in all tables of all systems.
    assert text.count("Open-Unmix, Wiener filter |") == 3 + 3
    assert rows[1] == [systems[1], "sdr", "demo", "band", "3.70", "3.80", "3.90", "4.00", "3.85"]
    paper = next(row for row in rows if "best checkpoint" in row[0])
    assert paper[2:] == [
        "published",
        "MUSDB18-HQ, 50 test songs",
        *["4.925", "4.073", "2.695", "5.060", "4.188"],
    ]
    # The paper's rows, and the rerun: four stems, and vocals in chunks of other sizes.
    others = [row for row in rows if row[2] == "published"]
    assert [sum(f"({source})" in row[0] for row in others) for source in SOURCES] == [1, 5, 1, 9]
    again = next(row for row in others if "147,456 samples, mean" in row[0])
    assert again[3:] == ["MUSDB18-HQ, 49 test songs", "4.737", "3.910", "2.688", "5.298", "-"]
    assert not any("Wave-U-Net" in row[0] or "Demucs" in row[0] for row in others)
    header, rows = next(table for table in found if "Demucs" in table[1][0][0])
    assert {(row[header.index("metric")], row[header.index("data")]) for row in rows} == {
        ("not stated", "not stated")
    }
    v4 = next(rows for header, rows in found if rows[0][1:2] == ["sdr_v4"])
    assert any("Wave-U-Net" in row[0] for row in v4)
    assert "never heard in training" in text
    assert "+1.80" in text


def test_page_of_results_for_one_stem(small_report: Path) -> None:
    text = (small_report / "docs/results.md").read_text(encoding="utf-8")
    header, rows = next(tables(text))
    assert header[4:] == ["other"]
    assert [row[0] for row in rows[:3]] == [
        "**pretrained**, step 20000 (early)",
        "**pretrained**, step 40000 (middle)",
        "**pretrained**, step 80000 (late)",
    ]
    assert any(row[4] == "about 0" for row in rows)
    # Rows of vocals alone stay away.
    assert all(row[4] != "-" for row in rows if row[2] == "published")
    assert "synthetic" not in text
    assert "What pretraining is worth" not in text
    assert "never heard" not in text
    assert "static equaliser |" in text
    for absent in ("refined", "Refined", "peers", "Peers"):
        assert absent not in text
    assert "transfer.png" not in text
