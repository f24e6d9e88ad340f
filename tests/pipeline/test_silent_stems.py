"""The whole experiment where a test song lacks a stem: every stage runs, every number is right."""

import csv
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from folders import write_song

from jukesep.base import params, paths
from jukesep.base.errors import UserError
from jukesep.pipeline import evaluate, pack
from jukesep.pipeline import train as experiment
from jukesep.report import figures, listen, results
from jukesep.report import write as report
from jukesep.separation import models
from jukesep.songs.manifest import STEMS
from jukesep.songs.prepare import prepare

ROOT = Path(__file__).parents[2]
RATE = 11_025
SMALL = [
    "scale=tiny", "model.width=4", "model.codes=16", "stage1.segment=2048", "stage1.steps=2",
    "stage2.segment=2048", "stage2.steps=2", "stage2.checkpoints=[1,2]", "stage2.warmup=0",
    "separation.chunk=1024", "inits=[scratch]", "data=folder", "data.valid_songs=1",
    "stems=[bass,vocals]",
]  # fmt: skip
SCORED = ("bass", "vocals")
LACKING, WHOLE = "lacks vocals", ("one", "two")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of the finished experiment, and its parameters."""
    root = tmp_path_factory.mktemp("project")
    names = ["train/a", "train/b", *(f"test/{name}" for name in (LACKING, *WHOLE))]
    for seed, name in enumerate(names):
        parts = write_song(root / "songs" / name, samples=2 * RATE, rate=RATE, seed=seed)
    folder = root / "songs/test" / LACKING
    parts = {stem: soundfile.read(folder / f"{stem}.wav")[0] for stem in STEMS}
    soundfile.write(folder / "vocals.wav", 0 * parts["vocals"], RATE)
    total = sum(parts.values()) - parts["vocals"]
    soundfile.write(folder / "mixture.wav", total, RATE)
    settings = [*SMALL, f"data.root={root / 'songs'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(figures, "write_figures", lambda results, folder: None)  # takes seconds
        Path("params.yaml").write_text(params.compose(settings, ROOT / "conf"))
        Path("dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
        p = params.load(Path("params.yaml"))
        prepare(p, paths.PREPARED)
        experiment.weights(p, "scratch")
        for stem in SCORED:
            experiment.stage1(p, stem, "scratch")
            experiment.stage2(p, stem, "scratch")
            evaluate.evaluate(p, stem, "scratch")
        evaluate.baselines(p)
        pack.pack(p)
        given = p.model_dump(mode="json")
        listen.of_experiment(given)
        report.write_report(given, Path())
        yield root, given


def _rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_of_the_songs_that_have_the_stem(project):
    """By any system: vocals of two songs; of the others all, but BSSEval v4 of two songs alone."""
    root, _ = project
    files = [root / f"results/scores/{stem}_scratch.csv" for stem in SCORED]
    files.append(root / "results/systems/baselines.csv")
    for row in [row for path in files for row in _rows(path)]:
        undefined = row["song"] == LACKING and (
            row["stem"] == "vocals" or row["metric"] == "sdr_v4"
        )
        assert np.isnan(float(row["value"])) == undefined


def test_averages_are_over_the_songs_that_are_scored(project):
    root, given = project
    read = results.read_results(given, root)
    for stem in SCORED:
        for metric, average in (("sdr", np.mean), ("sdr_mdx", np.mean), ("sdr_v4", np.median)):
            songs = WHOLE if stem == "vocals" or metric == "sdr_v4" else (LACKING, *WHOLE)
            rows = _rows(root / f"results/scores/{stem}_scratch.csv")
            values = [
                float(row["value"])
                for row in rows
                if (row["metric"], row["step"]) == (metric, "2") and row["song"] in songs
            ]
            assert len(values) == len(songs)
            found = read.table(metric)["scratch_2"][stem]
            assert found == pytest.approx(average(values), abs=5.001e-5)  # of four decimals
            if metric == "sdr":
                late = json.loads((root / "metrics/sdr/scratch_late.json").read_text())
                assert late[stem] == pytest.approx(found, abs=1e-4)
                card = json.loads((root / "models/separator/" / models.CARD).read_text())
                assert card["stems"][stem]["scores"] == {"test, test": round(found, 4)}
    plotted = _rows(root / "plots/scores.csv")
    assert LACKING in {row["song"] for row in plotted if row["stem"] == "bass"}
    assert {row["song"] for row in plotted if row["stem"] == "vocals"} == set(WHOLE)
    assert all(row["sdr"] for row in plotted)


def test_the_page_says_what_is_left_out(project):
    root, _ = project
    page = (root / "docs/results.md").read_text()
    first, mdx, v4 = page.split("\n## ")[2:5]
    for text in (first, mdx):
        assert f"- **vocals** is scored on 2 of 3 songs. Without a value: {LACKING}." in text
        assert text.count("Without a value") == 1
    for stem in SCORED:
        assert f"- **{stem}** is scored on 2 of 3 songs. Without a value: {LACKING}." in v4
    assert "museval leaves such songs out" in v4
    assert "undefined" not in page
    assert "nan" not in page


def test_the_listening_page_has_the_sounds_without_a_score(project):
    root, _ = project
    page = (root / "listen/index.html").read_text()
    assert "NaN" not in page
    songs = json.loads(page[page.index('"songs":') + 8 : page.index("]}]}]") + 5])
    vocals = next(s["parts"] for s in songs if s["name"] == LACKING)[-1]
    assert vocals["name"] == "vocals"
    # Mixture, truth, two checkpoints, static equaliser, ceiling.
    assert len(vocals["sounds"]) == 6
    assert all(sound["score"] is None for sound in vocals["sounds"])


def test_a_score_that_only_one_system_lacks_is_refused(project, tmp_path):
    root, given = project
    for name in ("results", "runs"):
        (tmp_path / name).mkdir()
        for path in (root / name).rglob("*.csv"):
            copy = tmp_path / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    path = tmp_path / "results/scores/bass_scratch.csv"
    lines = path.read_text().splitlines()
    for song, value in ((WHOLE[0], "nan"),):
        place = next(
            n for n, line in enumerate(lines) if line.startswith(f"{song},") and ",sdr," in line
        )
        lines[place] = f"{lines[place].rpartition(',')[0]},{value}"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"bass_scratch\.csv: sdr of bass .* is nan"):
        results.read_results(given, tmp_path)


def test_the_stages_scripts_run_again(project):
    """As DVC runs them, on the same songs: the same rows."""
    root, _ = project
    before = (root / "results/systems/baselines.csv").read_bytes()
    runpy.run_path(str(ROOT / "stages/baselines.py"), run_name="__main__")
    assert (root / "results/systems/baselines.csv").read_bytes() == before
    assert yaml.safe_load((root / "params.yaml").read_text())["data"]["source"] == "folder"
