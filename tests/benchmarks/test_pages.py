"""The commands, and the pages that they write."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import gpu, kills, measuring, paper_scale, performance, row
from benchmarks.row import Goal, Result, Row, Skipped
from jukesep.base.errors import UserError

ROOT = Path(__file__).parents[2]
ROWS = command.rows()
FOUND, OLDER = (read(ROWS, ROOT / row.RESULTS) for read in (row.load, row.load_older))


def test_the_committed_pages_are_of_the_committed_results():
    names = [path.stem.partition("@")[0] for path in (ROOT / row.RESULTS).iterdir()]
    assert len(names) == len(FOUND) + sum(map(len, OLDER.values()))
    assert set(names) == set(FOUND)
    pages = {
        performance.PAGE: performance.page(ROWS, FOUND, OLDER),
        command.GPU_PAGE: gpu.page(FOUND["gpu"]),
        command.PAPER_PAGE: paper_scale.page(FOUND[name] for name in paper_scale.ROWS),
    }
    for path, text in pages.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text
    measured = [name for name in FOUND if name not in ("gpu", *paper_scale.ROWS)]
    assert all(FOUND[name].code["commit"] in pages[performance.PAGE] for name in measured)


@pytest.mark.parametrize(
    ("goal", "value", "met", "verdict"),
    [
        (Goal("speed", 2.0), 2.0, True, "met"),
        (Goal("speed", 2.0), 1.5, False, "25 % below"),
        (Goal("growth", 50, at_least=False), 50, True, "met"),
        (Goal("growth", 50, at_least=False), 75, False, "50 % above"),
        (Goal("change of the lowest score", 0), -0.125, False, "0.125 dB below"),
    ],
)
def test_a_goal_says_by_how_much_it_is_missed(goal, value, met, verdict):
    assert goal.met(value) is met
    assert goal.verdict(value) == verdict


def _measured():
    return Result({"jukesep": {"seconds": 0.25}}, {"speed": 3.0})


def _skipping():
    raise Skipped("no such thing here")


def _failing():
    raise ValueError("broken")


def _result(**changes):
    sides = {
        "textbook": {"seconds": 0.5, "megabytes": 30.0},
        "jukesep": {"seconds": 0.25, "megabytes": 10.0},
    }
    about = {"machine": measuring.machine(), "code": measuring.code(("benchmarks",))}
    return Result(**{"sides": sides, "figures": {"speed": 2.0, "memory": 1 / 3}} | about | changes)


def test_the_page_says_what_is_met_missed_and_missing():
    goals = Goal("speed", 1.6), Goal("memory", 0.3, at_least=False)
    rows = {"song": Row("a step", _measured, (), goals), "absent": Row("another", _measured, ())}
    stages = {"prepare": {"runs": 1, "seconds": 11.0, "progress": 8.0}}
    found = {"song": _result(), "repro": _result(details={"stages": stages})}
    rows["repro"] = Row("all", _measured, ())
    machine = {**measuring.machine(), "processor": "Other(R) One", "features": ["avx2", "fma"]}
    older = {"song": [_result(machine=machine, figures={"speed": 1.5})]}
    text = performance.page(rows, found, older)
    here = measuring.kind(measuring.machine())
    assert (
        f"| `song` | a step | {here} | 500 ms, 30 MB | 250 ms, 10 MB | 2.00 x | 0.33 x | speed at "
        "least 1.6 x: 2 x, **met**; memory at most 0.3 x: 0.333 x, **11 % above** |  |" in text
    )
    assert (
        "|  |  | Other AVX2, older | 500 ms, 30 MB | 250 ms, 10 MB | 1.50 x |  | speed at least "
        "1.6 x: 1.5 x, **6 % below**; memory at most 0.3 x: not measured |  |" in text
    )
    assert "| `absent` | another |  |  |  |  |  | not measured yet |  |" in text
    assert "- Other(R) One, " in text
    assert "- `song`: memory at most 0.3 x, found 0.333 x: 11 % above. Each chunk of" in text
    # A figure may have a reason of its own.
    why = {"song": "Slow.", "song, memory": "Large."}
    assert performance._missed(rows, found, why).endswith("11 % above. Large.")
    assert measuring.processor() in text
    assert "| all | 1 | 11 | 8 | 3.0 |" in text


def test_pictures_are_the_same_bytes_each_time(tmp_path):
    points = {"textbook": [[1, 2.0, 3.0], [2, 4.0, 6.0]], "jukesep": [[1, 1.0, 2.0], [2, 2.0, 3.0]]}
    for name in performance.GROWTH:
        paths = [tmp_path / f"{number}.svg" for number in range(2)]
        for path in paths:
            performance.draw(name, _result(details={"points": points}), path)
        one, other = (path.read_bytes() for path in paths)
        assert one == other
        assert b"<svg" in one


def test_rows_are_kept_one_by_one_and_not_measured_twice(tmp_path, monkeypatch, capsys):
    rows = {
        "one": Row("first", _measured, ("benchmarks",), (Goal("speed", 2.0),)),
        "two": Row("second", _skipping, ()),
        "broken": Row("third", _failing, ()),
        "long": Row("fourth", _measured, (), in_suite=False),
    }
    monkeypatch.setattr(Row, "files", property(lambda row: row.code))
    monkeypatch.setattr(command, "rows", lambda: rows)
    monkeypatch.setattr(measuring, "fresh", lambda count, run: run())
    monkeypatch.chdir(tmp_path)
    assert command.main([]) == 1
    printed = capsys.readouterr()
    assert "one: first; jukesep 250 ms; speed at least 2 x: 3 x, **met**" in printed.out
    assert "two: not measured here: no such thing here" in printed.out
    assert "broken: failed: broken" in printed.err
    kept = row.load(rows)
    assert list(kept) == ["one"]
    assert kept["one"].figures == {"speed": 3.0}
    assert kept["one"].machine == measuring.machine()
    assert (tmp_path / performance.PAGE).read_text() == performance.page(rows, kept, {})

    assert command.main([]) == 1
    assert "one: first" not in capsys.readouterr().out
    assert command.main(["--write"]) == 0
    assert "Of older code" not in capsys.readouterr().err
    rows["one"] = Row("first", _measured, ("benchmarks/row.py",))
    assert command.main(["--write"]) == 0
    assert "Of older code or another machine: one\n" in capsys.readouterr().err
    assert command.main(["one", "long"]) == 0
    assert "one: first" in (out := capsys.readouterr().out)
    assert "fourth" in out
    with pytest.raises(SystemExit):
        command.main(["three"])
    (tmp_path / row.RESULTS / "one.json").write_text("[]")
    with pytest.raises(UserError, match=r"one\.json is not a result"):
        command.main(["--write"])


@pytest.mark.parametrize(
    ("processor", "features", "kind"),
    [
        ("AMD EPYC", ["avx2", "fma", "avx512f", "avx512_bf16"], "AMD AVX-512 BF16"),
        ("Intel(R) Xeon(R) Processor", ["avx2", "avx512f", "amx_bf16"], "Intel AMX"),
        ("AMD EPYC", ["avx2", "fma"], "AMD AVX2"),
        ("aarch64", ["asimd", "bf16"], "aarch64 NEON"),
        ("arm", [], "arm"),
    ],
)
def test_a_kind_of_processor_is_its_maker_and_its_instructions(processor, features, kind):
    assert measuring.kind({"processor": processor, "features": features}) == kind


def test_the_last_result_of_each_kind_of_processor_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = {"one": ["avx2"], "two": ["avx512f"]}

    def save(name, speed):
        machine = {**measuring.machine(), "processor": name, "features": kinds[name]}
        _result(machine=machine, figures={"speed": speed}).save("song")

    def kept():
        found, older = row.load(["song"])["song"], row.load_older(["song"])["song"]
        return [(one.kind, one.figures["speed"]) for one in (found, *older)]

    save("one", 1.0)
    save("one", 2.0)
    assert kept() == [("one AVX2", 2.0)]
    save("two", 3.0)
    assert kept() == [("two AVX-512", 3.0), ("one AVX2", 2.0)]
    save("two", 4.0)
    assert kept() == [("two AVX-512", 4.0), ("one AVX2", 2.0)]
    save("one", 5.0)
    assert kept() == [("one AVX2", 5.0), ("two AVX-512", 4.0)]
    assert {path.name for path in Path(row.RESULTS).iterdir()} == {
        *("song.json", "song@two-avx-512.json")
    }


def test_the_command_measures_a_real_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    interleaved = measuring.interleaved
    monkeypatch.setattr(measuring, "interleaved", lambda steps, seconds: interleaved(steps, 0))
    assert command.main(["help"]) == 0
    assert "help: `jukesep --help`; python" in capsys.readouterr().out
    kept = row.load(ROWS)["help"]
    assert kept.code == measuring.code(ROWS["help"].files)
    assert 0 < kept.sides["python"]["seconds"] < kept.sides["jukesep"]["seconds"]
    for page in (performance.PAGE, command.GPU_PAGE, command.PAPER_PAGE):
        assert "easured" in page.read_text()


def test_the_help_names_every_row(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ROWS)


@pytest.fixture
def trainings(monkeypatch):
    """Nothing is trained: the stages that `kills` asks for, in order, and what each ends with.

    tests/training/test_processes.py kills real trainings.
    """
    endings = {stage: {"log.csv": "1", "last save": "2"} for stage in kills.STAGES}
    asked = []

    def prepare(folder, steps):
        folder.mkdir()
        return folder

    def killed(project, stage, life, chosen):
        asked.append(stage)
        return Counter({"trainings": 1, "kills by SIGKILL, training": kills.A_TRAINING})

    monkeypatch.setattr(kills, "prepare", prepare)
    monkeypatch.setattr(kills, "run", lambda project, stage, *item: "")
    monkeypatch.setattr(kills, "killed", killed)
    monkeypatch.setattr(kills, "ending", lambda project, stage: endings[stage])
    return asked, endings


@pytest.mark.parametrize(("wanted", "rounds"), [(1, 1), (10, 1), (11, 2)])
def test_trainings_of_both_stages_are_killed_at_least_so_often(trainings, capsys, wanted, rounds):
    kills.main(["--kills", str(wanted)])
    out = capsys.readouterr().out
    assert trainings[0] == list(kills.STAGES) * rounds
    assert f"{2 * rounds:4} trainings\n" in out
    assert f"{2 * rounds * kills.A_TRAINING:4} kills by SIGKILL, training\n" in out
    assert "Every training ended with the files" in out


def test_a_killed_training_that_ends_with_other_files_is_an_error(trainings, monkeypatch):
    _, endings = trainings
    found = iter([*endings.values(), endings["stage1"], {**endings["stage2"], "log.csv": "3"}])
    monkeypatch.setattr(kills, "ending", lambda project, stage: next(found))
    message = r"stage2, training 0, seed 4: log\.csv differ at the end\."
    with pytest.raises(UserError, match=message):
        kills.main(["--kills", "1", "--seed", "4"])
