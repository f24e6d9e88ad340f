"""The benchmarks' rows: measured apart from each other, kept, and laid out on a page."""

import dataclasses
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import (
    __main__ as command,
)
from benchmarks import (
    arithmetic,
    breakdown,
    commands,
    growth,
    machine,
    performance,
    precision,
    row,
    scoring,
    speed,
    timing,
)
from benchmarks.row import Goal, Options, Result, Row
from jukesep.base.errors import UserError
from jukesep.model.vqvae import Architecture
from jukesep.scoring import metrics

ROOT = Path(__file__).parents[2]
ROWS = command.rows()
SMALL = Architecture(width=8, depth=2, latent_dim=8, codes=16)
QUICK = Options(seconds=0.1, songs=3)


@pytest.fixture
def _here(monkeypatch):
    """Processes of their own take seconds to start; one that stays will do."""
    monkeypatch.setattr(timing, "fresh", lambda count, run, *args: run(*args))


def test_turns_are_taken_and_the_first_is_not_counted():
    order = []
    steps = {name: lambda name=name: order.append(name) for name in "ab"}
    taken = timing.interleaved(steps, 0, least=2)
    assert "".join(order) == "ababab"
    assert [len(runs) for runs in taken.values()] == [2, 2]
    taken = timing.interleaved({"slow": lambda: time.sleep(0.01)}, 60, most=3)
    assert len(taken["slow"]) == 3
    assert min(taken["slow"]) >= 0.01


def test_a_fresh_process_is_held_to_its_cores():
    assert timing.fresh(1, timing.cores) == 1
    assert timing.fresh(1, machine.describe)["cores"] == 1
    assert timing.fresh(0, os.getpid) != os.getpid()


def test_a_killed_process_is_a_message():
    with pytest.raises(UserError, match="killed"):
        timing.fresh(0, os.abort)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks through /proc")
def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    said = tmp_path / "pid"
    inner = f"import os, time; open({str(said)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"from benchmarks import timing; timing.fresh(0, exec, {inner!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        _wait_for(lambda: said.exists() and said.read_text())
        parent.kill()
    status = Path(f"/proc/{said.read_text()}/status")

    def ended():
        try:
            return "State:\tZ" in status.read_text()
        except OSError:
            return True

    _wait_for(ended)


def _wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures through /proc")
def test_memory_is_that_of_the_process_alone():
    """Not of this one, which once had more."""
    before = np.ones(50_000_000)
    del before
    assert timing.fresh(0, timing.highest) < 200e6 < 400e6 < timing.highest()


def test_the_arithmetic_is_the_papers():
    """shared/REFERENCE.md's numbers were counted apart from this code."""
    assert arithmetic.flops(Architecture()) == {
        "encoder": 244_992, "decoder": 261_504, "quantiser": 32_768
    }  # fmt: skip
    steps = arithmetic.work(Architecture())
    assert steps == {"stage1": 1_552_256, "stage2": 979_968, "separation": 539_264}


@pytest.mark.parametrize(
    "architecture", [SMALL, Architecture(width=4, depth=1, downs=(2, 1), latent_dim=6, codes=8)]
)
def test_the_arithmetic_is_that_of_the_shapes(architecture):
    """Each layer's products, from the values that go in and come out."""
    vqvae, audio = speed.model(architecture, 1, 1024)
    counted = []

    def count(layer, given, made):
        values = given[0] if isinstance(layer, torch.nn.ConvTranspose1d) else made
        counted.append(2 * layer.weight.numel() * values.shape[2])

    found = arithmetic.flops(architecture)
    for part, network in (("encoder", vqvae.encoder), ("decoder", vqvae.decoder)):
        counted.clear()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                layer.register_forward_hook(count)
        if part == "encoder":
            latents = network.blocks(audio)
        else:
            network.out(network.blocks(latents))
        assert sum(counted) / audio.shape[2] == found[part]


@pytest.mark.parametrize(
    ("goal", "value", "met", "verdict"),
    [
        (Goal("speed", 2.0), 2.0, True, "met"),
        (Goal("speed", 2.0), 1.5, False, "25 % below"),
        (Goal("difference", 50, " MB", at_least=False), 50, True, "met"),
        (Goal("difference", 50, " MB", at_least=False), 75, False, "50 % above"),
        (Goal("difference", 50, " MB", at_least=False), -3, True, "met"),
        (Goal("change", 0, " dB"), -0.125, False, "0.12 dB below"),
    ],
)
def test_a_goal_says_by_how_much_it_is_missed(goal, value, met, verdict):
    assert goal.met(value) is met
    assert goal.verdict(value) == verdict


def test_both_sides_of_a_case_are_measured(monkeypatch):
    case = speed.Case(lambda: speed.stage2(SMALL, 1, 2048), flops=1e9, audio=2.0)
    monkeypatch.setitem(speed.CASES, "small", case)
    monkeypatch.setattr(arithmetic, "GEMM", 64)
    peaks = {"textbook": 30.0, "jukesep": 10.0}
    monkeypatch.setattr(speed.timing, "fresh", lambda count, run, name, side: (0.1, peaks[side]))
    found = speed.measure("small", QUICK)
    seconds = [found.sides[side]["seconds"] for side in ("textbook", "jukesep")]
    assert found.figures["speed"] == pytest.approx(seconds[0] / seconds[1])
    assert found.figures["memory"] == pytest.approx(1 / 3)
    assert found.figures["real time"] == pytest.approx(2.0 / seconds[1])
    limit = found.details["limit"]
    assert found.figures["share of the limit"] == pytest.approx(100 * 1e9 / seconds[1] / limit)


def test_a_side_by_itself_has_time_and_memory():
    seconds, megabytes = speed.alone(lambda: speed.stage1(SMALL, 1, 2048), "textbook")
    assert seconds > 0
    assert megabytes >= 0


@pytest.mark.parametrize("what", ["stage1", "stage2", "separation"])
def test_precisions_run_the_same_step(what, monkeypatch):
    monkeypatch.setattr(speed, "PAPER", SMALL)
    steps = speed._precisions(what, 1, 2048)
    assert list(steps) == ["fp32", "bf16"]
    for step in steps.values():
        step()


@pytest.mark.usefixtures("_here")
def test_bf16_is_skipped_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(machine, "features", lambda: ["avx2"])
    with pytest.raises(row.Skipped, match="bf16"):
        speed.measure("bf16-stage1", QUICK)
    assert command.measure(Row("", _skipping), QUICK).skipped == "no such thing here"


def _skipping(options):
    raise row.Skipped("no such thing here")


def test_a_song_is_measured_against_the_limit(monkeypatch):
    monkeypatch.setattr(speed, "PAPER", SMALL)
    monkeypatch.setattr(arithmetic, "GEMM", 64)
    found = speed.song("fp32", 0.2, QUICK)
    assert found.figures["real time"] > 0
    assert found.details["flops"] == pytest.approx(0.2 * 44_100 * 2 * 4 * speed._WORK["separation"])


def test_the_parts_of_a_step_make_it_up(monkeypatch):
    monkeypatch.setattr(breakdown, "PAPER", SMALL)
    monkeypatch.setattr(arithmetic, "GEMM", 64)
    found = breakdown.measure(QUICK, samples=2048)
    for side in found.details["parts"].values():
        assert set(side) == {*breakdown.PARTS, "step", "rest"}
        assert sum(side[part] for part in (*breakdown.PARTS, "rest")) == pytest.approx(side["step"])
    text = performance._breakdown(found)
    assert text.count("\n| ") == len(breakdown.PARTS) + 4


def test_sdr_v4_is_compared_with_musevals(monkeypatch):
    """With a stand-in for museval, which takes seconds; test_scores.py has the real one."""

    def bss_eval(references, estimates, window, hop):
        stems = (np.moveaxis(array, 2, 1) for array in (references, estimates))
        return metrics.framewise_sdr(*stems, window) + 1e-3, None, None, None, None

    stand_in = types.SimpleNamespace(bss_eval=bss_eval)
    monkeypatch.setattr(metrics, "museval_metrics", lambda: stand_in)
    found = scoring.sdr_v4(QUICK, seconds=1)
    assert found.figures["difference"] == pytest.approx(1e-3)
    assert found.figures["speed"] > 0


def test_the_evaluation_runs_what_its_models_alone_run(monkeypatch):
    monkeypatch.setattr(scoring, "TEST_SONGS", 1)
    monkeypatch.setattr(speed, "DEMO", SMALL)
    here = Path.cwd()
    found = scoring.evaluation(Options(seconds=0))
    assert found.sides["whole"]["seconds"] > 0
    assert found.figures["cores busy"] > 0
    assert Path.cwd() == here


def test_prepare_is_timed_twice():
    found = commands.prepare(QUICK, seconds=1.0)
    assert found.figures["second time"] > 0
    assert "3 songs of" in found.note


def test_the_prepared_songs_are_sums(tmp_path):
    commands._make_songs(tmp_path, 2, 0.1)
    (song, _) = sorted(tmp_path.glob("*/*"))
    parts = {path.stem: soundfile.read(path, dtype="int16")[0] for path in song.glob("*.wav")}
    mixture = parts.pop("mixture")
    assert len(parts) == 4
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts.values()), mixture)


@pytest.mark.usefixtures("_here")
def test_separating_is_measured_by_the_command():
    found = commands.hour(QUICK, rate=8000, lengths=(1, 2))
    assert len(found.sides) == 2
    assert abs(found.figures["difference"]) < 100


def test_the_experiment_runs_in_a_clone_and_its_scores_are_compared(monkeypatch):
    ran = []

    def follow(arguments, clone, lines):
        ran.append((arguments, clone))
        lines += LINES

    monkeypatch.setattr(commands, "_follow", follow)
    try:
        found = commands.repro(QUICK)
    except row.Skipped as reason:
        pytest.skip(str(reason))
    ((arguments, clone),) = ran
    assert arguments == ["-m", "dvc", "repro", "--force"]
    assert clone != ROOT
    assert found.figures["change of the lowest score"] == 0
    assert set(found.details["stages"]) == {"prepare", "stage1"}


LINES = [
    (1.0, "Running stage 'prepare':\n"),
    (9.0, "band: 100%|##########| 196/196 [00:06<00:00, 5.69song/s]\n"),
    (10.0, "prepare: check:  50%|#####     | 98/196 [00:01<00:01, 80.5song/s]\n"),
    (11.0, "prepare: check: 100%|##########| 196/196 [00:02<00:00, 80.5song/s]\n"),
    (12.0, "Running stage 'stage1@drums-pretrained':\n"),
    (13.0, "stage1 drums: 100%|##########| 160/160 [1:00:05<00:00, 29.0step/s, loss=0.3]\n"),
    (20.0, "Running stage 'stage1@bass-pretrained':\n"),
]


def test_the_time_of_the_demo_is_told_by_kind_of_stage():
    assert commands._stages(LINES, 25.0) == {
        "prepare": {"runs": 1, "seconds": 11.0, "progress": 8.0},
        "stage1": {"runs": 2, "seconds": 13.0, "progress": 3605.0},
    }
    stages = {"prepare": {"runs": 1, "seconds": 11.0, "progress": 8.0}}
    page = performance.page({}, {"repro": Result({}, {}, details={"stages": stages})})
    assert "| prepare | 1 | 11 | 8 | 3.0 |" in page
    assert "| all | 1 | 11 | 8 | 3.0 |" in page


def test_a_command_is_followed_line_by_line_and_named_when_it_fails(tmp_path, capfd):
    lines = []
    commands._follow(["-c", "print('one'); print('a\\rb')"], tmp_path, lines)
    assert [line for _, line in lines] == ["one\n", "a\n", "b\n"]
    with pytest.raises(UserError, match="failed; above is why"):
        commands._follow(["-c", "raise SystemExit('no')"], tmp_path, lines)
    assert "no" in capfd.readouterr().err


@pytest.mark.usefixtures("_here")
def test_precisions_are_compared_by_their_scores(monkeypatch):
    monkeypatch.setattr(timing, "cores", lambda: 1)  # it changes the current folder
    monkeypatch.setattr(machine, "features", lambda: [])
    shorter = (
        "scale=tiny", "band.train=2", "band.valid=1", "band.test=1",
        "stage1.steps=2", "stage2.steps=2", "stage2.checkpoints=[2]", "band.pretrain=1",
    )  # fmt: skip
    found = precision.measure(QUICK, shorter, stems=("bass",))
    assert abs(found.figures["loss by separating in bf16"]) < 1
    assert set(found.details["sdr"]) == {"fp32 bass", "bf16 bass"}


def test_growth_has_a_point_for_each_size(monkeypatch):
    monkeypatch.setattr(timing, "fresh", lambda count, run, *args: (0.5, 12.0))
    found = growth.segments(QUICK, sizes=(2048, 4096))
    assert found.details["points"]["jukesep"] == [[2048, 0.5, 12.0], [4096, 0.5, 12.0]]
    songs = growth.songs(QUICK).details["points"]
    assert [point[0] for point in songs["jukesep"]] == list(growth.SONG_SECONDS)


def _result(**changes):
    sides = {
        "textbook": {"seconds": 0.5, "megabytes": 30.0},
        "jukesep": {"seconds": 0.25, "megabytes": 10.0},
    }
    one = Result(sides, {"speed": 2.0, "memory": 1 / 3}, machine=machine.describe())
    one.code = machine.code()
    return dataclasses.replace(one, **changes)


def test_the_page_says_what_is_met_missed_and_missing():
    rows = {
        "fast": Row("a step", _skipping, (Goal("speed", 1.6), Goal("memory", 0.3, at_least=False))),
        "absent": Row("another", _skipping),
        "not-here": Row("a third", _skipping),
    }
    found = {"fast": _result(), "not-here": Result(skipped="no bf16", machine=machine.describe())}
    text = performance.page(rows, found)
    assert (
        "| `fast` | a step | 500 ms, 30 MB | 250 ms, 10 MB | 2.00 x | 0.33 x | speed at least "
        "1.6 x: 2.00 x, **met**; memory at most 0.3 x: 0.33 x, **11 % above** |  |" in text
    )
    assert "| `absent` | another |  |  |  |  | not measured yet |  |" in text
    assert "| `not-here` | a third |  |  |  |  | not measured here: no bf16 |  |" in text
    assert "- `fast`: memory at most 0.3 x, found 0.33 x: 11 % above." in text
    assert machine.processor() in text
    assert "(gpu.md)" not in text
    assert "(gpu.md)" in performance.page(rows, found, gpu=True)


def test_pictures_are_the_same_bytes_each_time(tmp_path):
    points = {"textbook": [[1, 2.0, 3.0], [2, 4.0, 6.0]], "jukesep": [[1, 1.0, 2.0], [2, 2.0, 3.0]]}
    for name in performance.GROWTH:
        result = _result(details={"points": points})
        paths = [tmp_path / f"{number}.svg" for number in range(2)]
        for path in paths:
            performance.draw(name, result, path)
        one, other = (path.read_bytes() for path in paths)
        assert one == other
        assert len(one) < 60_000
        assert b"<svg" in one


def _measured(options):
    return Result({"jukesep": {"seconds": options.seconds}}, {"speed": 3.0})


def _failing(options):
    raise ValueError("broken")


@pytest.mark.usefixtures("_here")
def test_rows_are_kept_one_by_one_and_not_measured_twice(tmp_path, monkeypatch, capsys):
    rows = {
        "one": Row("first", _measured, (Goal("speed", 2.0),), module="growth"),
        "two": Row("second", _skipping, module="growth"),
        "broken": Row("third", _failing, module="growth"),
        "long": Row("fourth", _measured, in_suite=False, module="growth"),
    }
    monkeypatch.setattr(command, "rows", lambda: rows)
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 1
    printed = capsys.readouterr()
    assert "one: first: jukesep 8.00 s; speed at least 2 x: 3.00 x, **met**" in printed.out
    assert "two: not measured here: no such thing here" in printed.out
    assert "broken: failed: broken" in printed.err
    kept = row.load(rows)
    assert list(kept) == ["one", "two"]
    assert kept["one"].figures == {"speed": 3.0}
    assert kept["one"].machine == machine.describe()
    assert (tmp_path / performance.PAGE).read_text() == performance.page(rows, kept)

    assert command.main([]) == 1
    assert "one: first" not in capsys.readouterr().out
    assert command.main(["--write"]) == 0
    assert command.main(["one", "--seconds", "2"]) == 0
    assert "jukesep 2.00 s" in capsys.readouterr().out
    assert command.main(["long"]) == 0
    assert "fourth" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["three"])
    (tmp_path / row.RESULTS / "one.json").write_text("[]")
    with pytest.raises(UserError, match=r"one\.json: not a result"):
        command.main(["--write"])


def test_code_is_told_apart_by_its_digest(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    (tmp_path / "jukesep").mkdir()
    (tmp_path / "jukesep/a.py").write_text("1")
    module = tmp_path / "row.py"
    module.write_text("2")
    first = machine.code([module])
    assert first == machine.code([module])
    assert first["commit"] == ""
    module.write_text("3")
    assert machine.code([module])["digest"] != first["digest"]


def test_every_row_has_its_files_and_the_suite_leaves_one_out():
    for name, one in ROWS.items():
        assert all(path.exists() for path in command._modules(one)), name
    assert [name for name, one in ROWS.items() if not one.in_suite] == ["repro"]


def test_the_committed_page_is_of_the_committed_results():
    found = row.load(ROWS, ROOT / row.RESULTS)
    assert {path.stem for path in (ROOT / row.RESULTS).iterdir()} == set(found)
    text = performance.page(ROWS, found, gpu=(ROOT / "docs/gpu.md").exists())
    assert (ROOT / performance.PAGE).read_text(encoding="utf-8") == text


def test_the_help_names_every_row(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ROWS)
