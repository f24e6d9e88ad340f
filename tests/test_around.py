"""The rows of benchmarks.around at sizes that take no time: what they measure is there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import around

ROOT = Path(__file__).parents[1]


def test_the_score_is_museval_s_and_faster():
    found = around.sdr_v4(seconds=1.0, rate=2000, rounds=3)
    assert found["largest_difference_db"] < 1e-9
    assert found["ratio"] == found["seconds"]["museval"] / found["seconds"]["jukesep"] > 10


def test_the_evaluation_has_its_models_beside_it():
    found = around.evaluation(rounds=1, songs=1, seconds=1.0)
    assert set(found["seconds"]) == {"evaluation", "models"}
    assert found["songs"] == 1


def test_prepare_has_reading_beside_it_and_a_second_time():
    found = around.prepare(songs=3, seconds=9.0, again=6, rounds=1)
    assert set(found["seconds"]) == {"prepare", "reading"} == set(found["megabytes_a_second"])
    assert found["songs"] == 6
    assert found["second_time_seconds"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no peak of memory to ask for")
def test_the_memory_of_two_lengths(monkeypatch, tmp_path):
    given = ["--separate", str(tmp_path), "0.05"]
    command = [sys.executable, "-m", "benchmarks.around", *given]
    assert 0 <= float(around._run(command, ROOT)) < 500
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(around, "_run", lambda command, folder: f"{command[-1]}\n")
    assert around.memory() == {"megabytes": {"1 min": 1.0, "60 min": 60.0}, "difference": 59.0}


def test_a_row_is_printed_as_json_and_another_name_refused():
    command = [sys.executable, "-m", "benchmarks.around"]
    done = subprocess.run([*command, "stop"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such row: stop. There are: sdr_v4, evaluation, prepare, memory, start" in done.stderr


def test_the_start_has_pytorch_s_beside_it(monkeypatch, capsys):
    run = []
    monkeypatch.setattr(around, "_run", lambda command, folder: run.append(command[-1]))
    monkeypatch.setattr(sys, "argv", ["around", "start"])
    around.main()
    seconds = json.loads(capsys.readouterr().out)["start"]["seconds"]
    assert list(seconds) == ["jukesep --help", "a training's start", "import torch"]
    assert set(run) >= {"--help", "import torch"}
