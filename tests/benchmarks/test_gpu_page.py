"""The page of the measurements on a GPU, and what the command says where there is none."""

import json

import pytest
import torch

from benchmarks import gpu

SECONDS = {"textbook": 0.2, "fp32": 0.1, "tf32": 0.05, "bf16": 0.02}
MEGABYTES = {"textbook": 15_000, "fp32": 14_000, "tf32": 14_000, "bf16": 7000}


def _result():
    whole = {"seconds": SECONDS, "megabytes": MEGABYTES}
    some = {name: {side: row[side] for side in ("textbook", "fp32")} for name, row in whole.items()}
    return {
        "torch": "2.0",
        "processor": "a processor, 4 cores",
        "rounds": 7,
        "rows": {name: whole if name in gpu.FLOPS else some for name in gpu.WHAT},
        "profile": {"nearest codes": 15.0},
        "ceilings": {"bytes": 4e12, "fp32": 5e13, "tf32": 4e14, "bf16": 8e14},
        "segments": {"1": 900.0, "2": 500.0},
    }


def test_the_page_has_every_row_with_its_ratio():
    page = gpu.page({"A GPU": _result()})
    assert "## A GPU" in page
    for what in gpu.WHAT.values():
        assert f"| {what} | 200.0 | 100.0 (2.0 x) |" in page
    assert "| 50.0 (4.0 x) | 20.0 (10.0 x) |" in page
    assert "| nothing: it waits for the CPU | 5.00 |" in page
    assert "900 segments a second in stage 1, where steps in bf16 take 200" in page


def test_the_floor_is_of_operations_and_bytes():
    ceilings = _result()["ceilings"]
    arithmetic, memory = gpu.floor("stage1", "bf16", ceilings)
    samples = 4 * 393_216
    assert arithmetic == pytest.approx(1_552_256 * samples / 8e14)
    # 16 blocks at 1/2, 1/4 and 1/8 of the rate, 64 channels, ten times two bytes.
    assert memory == pytest.approx(16 * samples * 7 / 8 * 64 * 20 / 4e12)
    assert gpu.floor("stage1", "fp32", ceilings)[1] == pytest.approx(2 * memory)


def test_the_page_is_what_the_command_writes():
    results = json.loads(gpu.RESULTS.read_text(encoding="utf-8"))
    assert gpu.PAGE.read_text(encoding="utf-8") == gpu.page(results)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_command_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    gpu.main()
    assert capsys.readouterr().out.count("\n") == 1
    assert not list(tmp_path.iterdir())
