"""The probe of the paper's size: what it measures, and the page that it writes."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import measurements, paper_scale
from jukesep import audio
from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest, Song

ROOT = Path(__file__).parents[2]


def _noise_songs(parameters, folder):
    """In place of `prepare`: a song of noise in each split."""
    songs = []
    samples = int(parameters.band.seconds * 44_100)
    for split in ("train", "valid"):
        song = Song(split, split, "test", folder / split, samples)
        for seed, part in enumerate((MIXTURE, *STEMS)):
            noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (2, samples))
            audio.write(song.file(part), noise.astype(np.float32), 44_100, "FLOAT")
        songs.append(song)
    Manifest(44_100, tuple(songs)).save(folder / "manifest.json")


def test_paper_scale_measures_both_stages(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(paper_scale.prepare, "prepare", _noise_songs)
    kept, page = tmp_path / "paper_scale.json", tmp_path / "paper_scale.md"
    measurements.save(kept, [_measurement()])
    paper_scale.main(
        [
            *("--segment", "2048", "--batch", "1", "--steps", "1", "--threads", "1"),
            *("--device", "cpu", "--json", str(kept), "--page", str(page)),
        ]
    )
    (first, second), (earlier,) = (
        [one for one in json.loads(kept.read_text()) if (one["segment"] == 2048) is here]
        for here in (True, False)
    )
    assert measurements.Measurement(**earlier) == _measurement()
    assert (first["stage"], second["stage"]) == ("stage1", "stage2")
    for one in (first, second):
        numbers = [value for value in one.values() if not isinstance(value, str)]
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert one["kind"] == "cpu"
        assert one["steps"] == one["batch"] == one["threads"] == 1
        assert (one["encoder"], one["decoder"]) == (441_856, 458_177)
        assert one["memory"] >= one["imported"]
    assert page.read_text() == measurements.page(measurements.load(kept))
    assert "441,856 + 458,177 weights, as in the paper" in capfd.readouterr().out


def test_paper_scale_differs_from_the_paper_in_length_alone(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(params.compose(["scale=paper"], ROOT / "conf"))
    paper = params.load(path)
    found = paper_scale.compose(tmp_path, 3, measurements.SEGMENT, measurements.BATCH)
    for section in ("model", "codebook", "losses"):
        assert getattr(found, section) == getattr(paper, section)
    changed = {"steps", "checkpoints", "log_every", "valid_every", "valid_segments"}
    for stage in measurements.STAGES:
        assert getattr(paper, stage).steps == measurements.STEPS
        one, other = (getattr(of, stage).model_dump(exclude=changed) for of in (found, paper))
        assert one == other
    # The shortest song that the band may render holds a segment.
    assert 0.9 * found.band.seconds * found.model.sample_rate > measurements.SEGMENT


def test_paper_scale_refuses_sizes_that_do_not_fit(tmp_path, capsys):
    with pytest.raises(UserError, match="multiple of the hop"):
        paper_scale.compose(tmp_path, 1, 4095, 1)
    with pytest.raises(SystemExit):
        paper_scale.main(["--steps", "0"])
    assert "at least one step" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('[{"stage": "stage1"}]')
    with pytest.raises(UserError, match=r"other\.json: not this command's measurements"):
        measurements.load(tmp_path / "other.json")


def _die(*_):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_is_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_scale, "_train", _die)
    parameters = paper_scale.compose(tmp_path, 1, 4096, 1)
    with pytest.raises(UserError, match=r"stage1: the training was killed.*--batch 1"):
        paper_scale.measure(parameters, "stage1", tmp_path)


@pytest.mark.parametrize("step", [100.0, 0.05])
def test_the_seconds_of_a_step_leave_out_the_first_and_the_last(tmp_path, step):
    ends = [9 * step, 10 * step, 12 * step, 13 * step, 20 * step]
    lines = ["step,seconds,steps_per_second"]
    for number, (start, end) in enumerate(zip([0.0, *ends], ends, strict=False), 1):
        lines.append(f"{number},{end:.2f},{1 / (end - start):.3f}")
    (tmp_path / "timing.csv").write_text("\n".join(lines) + "\n")
    assert paper_scale.step_seconds(tmp_path / "timing.csv") == pytest.approx(step, rel=1e-3)


def _measurement(**changes):
    one = measurements.Measurement(
        device="A processor", kind="cpu", cores=4, threads=2, torch="2", stage="stage1",
        segment=393_216, batch=4, steps=3, seconds=36.0, memory=15_240_000_000,
        imported=700_000_000, encoder=441_856, decoder=458_177,
    )  # fmt: skip
    return dataclasses.replace(one, **changes)


def test_the_page_projects_and_says_what_is_not_measured():
    cpu = [_measurement(), _measurement(stage="stage2", seconds=18.0)]
    small = _measurement(stage="stage2", segment=65_536, seconds=2.0)
    assert measurements.page([]).count("Not measured yet.") == 2
    page = measurements.page([small, *cpu])
    assert measurements.hours(36.0) == 800
    assert "| A processor | 2 | stage1 | 36 | 800.0 | 15.2 | 14.5 | 3 |" in page
    assert "| A processor | 2 | stage2 | 65,536 | 4 | 2 | 15.2 | 14.5 | 3 |" in page
    assert "- A processor, 2 threads: 1,200 hours, 50 days" in page
    assert "- A processor (cpu): 4 cores, 2 threads an operation, PyTorch 2" in page
    assert "On a GPU nothing has been measured" in page

    gpu = [dataclasses.replace(one, device="A GPU", kind="cuda", seconds=0.09) for one in cpu]
    page = measurements.page([*cpu, *gpu])
    assert "- A GPU, 2 threads: 4 hours" in page
    assert "On a GPU nothing has been measured" not in page


def test_the_committed_page_of_the_papers_size_is_of_the_committed_measurements():
    found = measurements.load(ROOT / measurements.RESULTS)
    assert (ROOT / measurements.PAGE).read_text(encoding="utf-8") == measurements.page(found)
    paper = [one for one in found if one.segment * one.batch == 4 * 393_216]
    assert {one.stage for one in paper if one.kind == "cpu"} == {"stage1", "stage2"}
    # The reference takes about 23 GB.
    assert all(one.memory < 20e9 for one in paper if one.kind == "cpu")
    assert all((one.encoder, one.decoder) == (441_856, 458_177) for one in found)
