"""The pipeline, and every command of the README, at scale=tiny.

One `dvc repro` in a copy of this working tree makes the experiment that all tests share. Each test
leaves it as it was found, by the way back that the README names. A test that is marked with lines
of the README runs them as they are written there, or says what it puts in or adds.
"""

import csv
import hashlib
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from browser import opened, wait
from documents import blocks, read, readme_commands
from folders import write_musdb18hq, write_song

from jukesep.resume.status import trainings
from jukesep.songs.manifest import STEMS

pytestmark = pytest.mark.pipeline

ROOT = Path(__file__).parents[2]
INITS = ("pretrained", "scratch")
STEPS = {"early": 3, "late": 6}  # stage2.checkpoints of conf/scale/tiny.yaml
TRAININGS = ("stage1", "stage2", "evaluate")
KINDS = ("sdr", "sdr_mdx", "sdr_v4")
SYSTEMS = ("refined", "static_equaliser")  # beside ours: no peers by default
SHOWN_METRICS = sorted(
    f"metrics/sdr/{name}.json"
    for name in (*(f"{init}_{name}" for init in INITS for name in STEPS), *SYSTEMS)
)
BASELINES = ("mixture", "scaled_mixture", "ideal_ratio_mask")
# Written by the report stage and kept in git: the copy starts without.
REPORT = ("metrics/", "plots/", "docs/results.md", "dvc.lock")
CPU_SECONDS = 300  # of a tiny `dvc repro`: 150 s on two cores


@dataclass
class Project:
    """A project folder and the environment of its commands."""

    folder: Path
    env: dict[str, str]
    repro: str = ""  # what the first `dvc repro` said
    cpu: float = 0.0  # and its processor time, in seconds
    ran: set[str] = field(default_factory=set)  # every line that was run

    def __call__(
        self,
        line: str,
        status: int = 0,
        timeout: float = 600,
        *,
        instead: dict[str, object] | None = None,
        plus: str = "",
    ) -> str:
        """Run a command line as a user types it; what it said, on both channels.

        `instead` maps what stands in the line to what is put there, and `plus` is added to it.
        """
        self.ran.add(_short(line))
        for written, other in (instead or {}).items():
            assert written in line
            line = line.replace(written, str(other))
        ended = subprocess.run(
            shlex.split(f"{line} {plus}".removeprefix("uv run ")),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert ended.returncode == status, f"{line}\n{ended.stdout}"
        return ended.stdout

    def path(self, name: str) -> Path:
        return self.folder / name

    def metrics(self, name: str) -> dict[str, float]:
        return json.loads(self.path(f"metrics/{name}.json").read_text())

    def tree(self, *names: str) -> dict[str, str]:
        """Every file below the folders named, with its hash."""
        return {
            path.relative_to(self.folder).as_posix(): hashlib.md5(path.read_bytes()).hexdigest()
            for name in names
            for path in self.path(name).rglob("*")
            if path.is_file()
        }


def _short(line: str) -> str:
    """A command with or without `uv run` is the same."""
    return line.replace("uv run ", "")


MARKED: list[str] = []  # lines that tests are marked with


def readme(*lines: str) -> pytest.MarkDecorator:
    """Mark a test that runs these lines of the README."""
    MARKED.extend(map(_short, lines))
    return pytest.mark.readme(*lines)


def _environment(folder: Path) -> dict[str, str]:
    """That of a user with nothing set up, whose commands take the copy's code."""
    env = {key: value for key, value in os.environ.items() if key[:4] not in ("DVC_", "GIT_")}
    return env | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "PYTHONPATH": str(folder / "project"),
        "OMP_NUM_THREADS": "1",  # The models are so small that a second thread only waits.
        "COLUMNS": "300",
        "DVC_NO_ANALYTICS": "1",
        "DVC_GLOBAL_CONFIG_DIR": str(folder / "dvc-global"),
        "DVC_SYSTEM_CONFIG_DIR": str(folder / "dvc-system"),
        "DVC_SITE_CACHE_DIR": str(folder / "dvc-site"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{f"GIT_{who}_NAME": "Test" for who in ("AUTHOR", "COMMITTER")},
        **{f"GIT_{who}_EMAIL": "test@example.org" for who in ("AUTHOR", "COMMITTER")},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The working tree's project with scale=tiny as its default, run and committed."""
    folder = tmp_path_factory.mktemp("pipeline")
    project = Project(folder / "project", _environment(folder))
    listed = subprocess.check_output(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, text=True
    )
    for name in listed.split("\0"):
        if name and not name.startswith(REPORT) and (ROOT / name).is_file():
            project.path(name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project.path(name))
    config = project.path("conf/config.yaml")
    text = config.read_text()
    assert "- scale: demo" in text
    config.write_text(text.replace("- scale: demo", "- scale: tiny"))
    project("jukesep compose")
    project("git init --quiet --initial-branch=main")
    project("git add --all")
    project("git commit --quiet --message tiny")
    before = os.times()
    project.repro = project(
        "pip install uv && uv run dvc repro", instead={"pip install uv && uv run ": ""}
    )
    after = os.times()
    project.cpu = sum(after[2:4]) - sum(before[2:4])
    project("git add --all")
    project("git commit --quiet --message results")
    return project


@pytest.fixture
def unchanged(finished: Project, request: pytest.FixtureRequest):
    """The finished project, for a test that leaves it as it is."""
    yield finished
    for mark in request.node.iter_markers("readme"):
        assert {_short(line) for line in mark.args} <= finished.ran
    assert finished("git status --porcelain") == ""


@pytest.fixture
def project(unchanged: Project):
    """The finished project; whatever a test does to it is taken back."""
    yield unchanged
    unchanged("git restore .")
    unchanged("dvc checkout --quiet")


def _stages(stems: tuple[str, ...] = STEMS, inits: tuple[str, ...] = INITS) -> set[str]:
    """Names of all stages of an experiment."""
    trained = itertools.product(TRAININGS, stems, inits)
    return {
        "prepare",
        "baselines",
        "separator",
        "refined",
        "listen",
        "report",
        *(f"weights@{init}" for init in inits),
        *(f"{stage}@{stem}-{init}" for stage, stem, init in trained),
    }


def _ran(said: str) -> set[str]:
    return set(re.findall(r"^Running stage '(.+?)'", said, re.MULTILINE))


def _considered(said: str) -> set[str]:
    return set(re.findall(r"[Ss]tage '(.+?)'", said))


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _experiments(project: Project) -> set[str]:
    """Their names: the references of a commit are in refs/exps/12/345.../."""
    named = "git for-each-ref --format=%(refname:lstrip=-1) 'refs/exps/??/*/*'"
    return set(project(named).split())


# --- dvc repro --------------------------------------------------------------------------------


@readme("pip install uv && uv run dvc repro")
def test_repro_makes_the_experiment(unchanged: Project):
    assert _ran(unchanged.repro) == _stages()
    assert unchanged.cpu < CPU_SECONDS
    lock = yaml.safe_load(unchanged.path("dvc.lock").read_text())["stages"]
    assert set(lock) == _stages()
    for name, stage in lock.items():
        assert stage["outs"], name
        assert all("md5" in out for out in stage["outs"]), name
    # Progress and time left, of the trainings too.
    for line in ("prepare: ", "pretrain mixture pretrained: ", "stage2 vocals scratch: "):
        assert re.search(rf"{line}.*100%.*\[\d\d:\d\d<\d\d:\d\d", unchanged.repro), line


def test_metrics_are_the_papers_table(unchanged: Project):
    files = {path.removesuffix(".json") for path in unchanged.tree("metrics")}
    trained = {*(f"{init}_{name}" for init in INITS for name in STEPS), *SYSTEMS}
    baselines = {*BASELINES, *(f"ceiling_{init}" for init in INITS)}
    expected = {f"metrics/{kind}/{name}" for kind in KINDS for name in trained}
    expected |= {f"metrics/baselines/{name}" for name in baselines}
    expected |= {f"metrics/{kind}/baselines/{name}" for kind in KINDS[1:] for name in BASELINES}
    groups = {song["group"] for song in _rows(unchanged.path("results/systems/baselines.csv"))}
    if "held_out" in groups:
        expected |= {f"metrics/held_out/{name}" for name in trained}
        expected |= {f"metrics/held_out/baselines/{name}" for name in baselines}
    assert files == expected
    for name in files:
        values = unchanged.metrics(name.removeprefix("metrics/"))
        if name.split("/")[-1] in trained - {"static_equaliser"}:
            assert values.pop("step") == STEPS.get(name.rpartition("_")[2], STEPS["late"])
        assert list(values) == [*STEMS, "total"]
        if "sdr_v4" not in name:  # which a song need not have
            assert all(math.isfinite(value) for value in values.values())
            mean = sum(values[stem] for stem in STEMS) / len(STEMS)
            assert values["total"] == pytest.approx(mean, abs=1e-3)


def test_metrics_are_means_of_the_songs_scores(unchanged: Project):
    rows = _rows(unchanged.path("results/scores/vocals_scratch.csv"))
    values = [
        float(row["value"])
        for row in rows
        if (row["system"], row["metric"], row["step"]) == ("separation", "sdr", "6")
        and row["group"] == "seen"
    ]
    assert len(values) == 1  # of the two of band.test
    mean = sum(values) / len(values)
    assert unchanged.metrics("sdr/scratch_late")["vocals"] == pytest.approx(mean, abs=1e-4)


def test_every_training_left_its_log_and_checkpoints(unchanged: Project):
    for stage, steps in (("stage1", (6,)), ("stage2", STEPS.values())):
        for stem, init in itertools.product(STEMS, INITS):
            run = unchanged.path(f"runs/{stage}/{stem}_{init}")
            found = {int(path.stem) for path in (run / "checkpoints").iterdir()}
            assert found == set(steps)
            rows = _rows(run / "log.csv")
            assert rows[-1]["step"] == "6"
            assert all(math.isfinite(float(row["loss"])) for row in rows)
            assert any(row["valid_loss"] for row in rows)


def test_plots_pictures_and_page_are_written(unchanged: Project):
    declared = yaml.safe_load(unchanged.path("dvc.yaml").read_text())["plots"]
    tables = [
        (name, axes)
        for plot in declared
        if isinstance(plot, dict)
        for name, axes in plot.items()
        if name.endswith(".csv")
    ]
    assert len(tables) == 6
    for name, axes in tables:
        rows = _rows(unchanged.path(name))
        assert len(rows) > 1
        assert axes["x"] in rows[0]
    pictures = list(unchanged.path("plots").glob("*.png"))
    assert len(pictures) >= 3
    for picture in pictures:
        head = picture.read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert min(struct.unpack(">II", head[16:])) > 200
    page = unchanged.path("docs/results.md").read_text()
    for init, name in itertools.product(INITS, STEPS):
        assert f"{unchanged.metrics(f'sdr/{init}_{name}')['total']:.2f}" in page


@readme("uv run dvc repro", "uv run dvc metrics diff")
def test_repro_again_runs_nothing(unchanged: Project):
    said = unchanged("uv run dvc repro")
    assert _ran(said) == set()
    assert "up to date" in said
    # Nothing has changed.
    assert unchanged("uv run dvc metrics diff") == ""
    assert _ran(unchanged("dvc repro --dry --allow-missing")) == set()


def test_a_clone_without_the_data_is_up_to_date(unchanged: Project, tmp_path: Path):
    unchanged(f"git clone --quiet . {shlex.quote(str(tmp_path / 'clone'))}")
    clone = Project(tmp_path / "clone", unchanged.env | {"PYTHONPATH": str(tmp_path / "clone")})
    assert not clone.path("data").exists()
    said = clone("dvc repro --dry --allow-missing")
    assert _ran(said) == set()
    assert "up to date" in said


def test_a_change_is_noticed_with_all_that_hangs_on_it(project: Project):
    with project.path("jukesep/report/figures.py").open("a") as file:
        file.write("\n# changed\n")
    assert _ran(project("dvc repro --dry --allow-missing")) == {"listen", "report"}
    project("git restore jukesep/report/figures.py")
    with project.path("results/systems/baselines.csv").open("a") as file:
        file.write("\n")
    assert _ran(project("dvc repro --dry")) == {"baselines", "listen", "report"}
    project("dvc checkout --force --quiet results/systems/baselines.csv")
    project("jukesep compose stage2.learning_rate=0.002")
    ran = _ran(project("dvc repro --dry --allow-missing"))
    # What evaluation reads is not there anew yet: a dry run leaves it out.
    assert _kinds(ran) == {"stage2", "separator"}


def test_the_same_seed_gives_the_same_bits(project: Project):
    """Stages run anew leave the hashes in dvc.lock, and the report in git, as they were."""
    stages = (
        "prepare weights@pretrained stage1@bass-scratch stage2@bass-pretrained "
        "evaluate@bass-pretrained separator listen report"
    )
    assert _ran(project(f"dvc repro --force --single-item {stages}")) == set(stages.split())
    assert project("git status --porcelain") == ""
    assert _ran(project("dvc repro")) == set()


LONGER = "stem=bass 'inits=[scratch]' stage1.steps=200 save_minutes=0.001"
LONG = "stage1@bass-scratch"


def _kill(project: Project, line: str, number: signal.Signals) -> None:
    """Start a command, and kill DVC and what it runs, once a training has saved."""
    before = _saves(project)
    process = subprocess.Popen(
        shlex.split(line),
        cwd=project.folder,
        env=project.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _until(lambda: _saves(project) - before or process.poll() is not None)
    assert process.poll() is None
    os.killpg(process.pid, number)
    process.wait(60)
    _until(lambda: all(one.condition != "running" for one in trainings(_trainings(project))))


def _trainings(project: Project) -> Path:
    return project.path("trainings")


def _saves(project: Project) -> set[str]:
    return {path.name for path in _trainings(project).glob("stage1-bass_*/state-*.state")}


def _until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@readme("jukesep status")
def test_a_killed_training_goes_on_by_the_same_commands(project: Project):
    """Killed with DVC, in the workspace and in a temporary folder."""
    project(f"jukesep compose {LONGER}")
    _kill(project, f"dvc repro {LONG}", signal.SIGKILL)
    settings = " ".join(f"-S {setting}" for setting in LONGER.split())
    _kill(project, f"dvc exp run --temp {settings} {LONG}", signal.SIGINT)
    assert "interrupted" in project("jukesep status")
    # Its curve so far.
    project("dvc plots show")
    page = project.path("dvc_plots/index.html").read_text()
    assert "trainings_stage1-bass_scratch-" in page
    said = project(f"dvc repro {LONG}")
    assert re.search(r"resumes after step \d+ of 200", said)
    assert "No unfinished trainings" in project("jukesep status")
    lock = project.path("dvc.lock").read_text()
    said = project(f"dvc repro --force --single-item {LONG}")
    assert "resumes" not in said
    assert project.path("dvc.lock").read_text() == lock


# --- real songs -------------------------------------------------------------------------------


PAPER = "uv run dvc exp run -S scale=paper -S data=musdb18hq -S data.root=/abs/path"


@readme(PAPER)
def test_musdb18hq_in_place(project: Project, tmp_path: Path):
    """Read where it lies, by an experiment that runs elsewhere; a wrong root is said."""
    known = _experiments(project)
    root = write_musdb18hq(tmp_path / "musdb18hq", samples=5000)
    # Short songs, and the first stage alone: the others take days. No weights from a network.
    short = " ".join(f"-S {stage}.segment=4096" for stage in ("pretrain", "stage1", "stage2"))
    said = project(
        PAPER, instead={"/abs/path": root}, plus=f"{short} -S weights=pretrain --temp prepare"
    )
    assert _ran(said) == {"prepare"}
    assert "prepare: 86 train, 14 valid, 50 test, 86 pretrain songs" in said
    given = "-S data=musdb18hq -S model.sample_rate=44100 -S data.root="
    said = project(f"uv run dvc exp run --temp {given}{root / 'train'} prepare", status=255)
    assert f"Give the folder above, {root}." in said
    # Of another scale: each of its parameters would be a column of `dvc exp show`.
    (name,) = _experiments(project) - known
    project(f"dvc exp remove {name}")


def test_songs_of_ones_own(project: Project, tmp_path: Path):
    """The whole experiment on songs that are neither copied nor in groups."""
    for name in ("train/a", "train/b", "train/c", "test/d"):
        write_song(tmp_path / "songs" / name, samples=60_000)
    said = project(
        f"uv run dvc exp run --temp -S data=folder -S data.root={tmp_path / 'songs'} "
        "-S data.valid_songs=1 -S model.sample_rate=44100 -S stem=vocals -S inits=[scratch]"
    )
    assert _ran(said) == _stages(("vocals",), ("scratch",))


# --- experiments ------------------------------------------------------------------------------

RESULTS = ("runs", "results", "data/prepared", "models", "listen", "metrics", "plots", "docs")
UNTRAINED = {"baselines", "separator", "refined", "listen", "report"}


@readme("uv run dvc exp run -S stem=other", "dvc gc -w", "uv run dvc exp run")
def test_one_stem(project: Project):
    total, before = project.metrics("sdr/pretrained_late"), project.tree(*RESULTS)

    said = project("uv run dvc exp run -S stem=other")
    assert _considered(said) <= _stages(("other",))
    # Nothing is trained that has been trained before.
    assert _ran(said) <= UNTRAINED
    for name in project.tree("metrics"):
        values = project.metrics(name.removeprefix("metrics/").removesuffix(".json"))
        assert {*values} - {"step"} == {"other"}
    assert project.metrics("sdr/pretrained_late")["other"] == total["other"]
    assert {row["stem"] for row in _rows(project.path("plots/scores.csv"))} == {"other"}
    page = project.path("docs/results.md").read_text()
    # Not by the number: another one can look like it.
    headings = [line for line in page.splitlines() if line.startswith("| system | metric |")]
    assert headings
    assert not [line for line in headings if "total" in line]
    # What it would delete from the cache, had it not been warned of.
    said = project("dvc gc -w", plus="--dry --force")
    lock = yaml.safe_load(project("git show HEAD:dvc.lock"))["stages"]
    (out,) = lock["stage1@bass-scratch"]["outs"]
    assert f"{out['md5'][:2]}/{out['md5'][2:]}" in said

    # The way back: the other stems are not trained again.
    assert not project.path("runs/stage1/bass_scratch").exists()
    assert _kinds(_ran(project("uv run dvc exp run"))) <= {"report"}
    assert project.tree(*RESULTS) == before


@readme("uv run dvc exp run -S peers=hdemucs")
def test_a_peer_beside_ours(project: Project):
    before, known = project.tree(*RESULTS), _experiments(project)
    said = project("uv run dvc exp run -S peers=hdemucs")
    assert _ran(said) == {"peer@hdemucs", "evaluate_peer@hdemucs", "listen", "report"}
    assert project.metrics("sdr/hdemucs")["step"] == 4
    assert {*STEMS, "total"} < set(project.metrics("held_out/hdemucs"))
    assert re.search(r"^metrics/sdr/hdemucs", project("dvc metrics show"), re.MULTILINE)
    assert "| HDemucs" in project.path("docs/results.md").read_text()
    assert "HDemucs" in {row["label"] for row in _rows(project.path("plots/scores.csv"))}
    assert (project.path("results/audio/hdemucs")).is_dir()

    # The way back trains nothing again.
    assert _kinds(_ran(project("uv run dvc exp run"))) <= {"report"}
    assert project.tree(*RESULTS) == before
    # Else its columns stand in the tables of the tests that follow.
    for name in _experiments(project) - known:
        project(f"dvc exp remove {name}")


@pytest.fixture
def newcomer(finished: Project, tmp_path: Path) -> Project:
    """A fresh clone on a machine that did not make dvc.lock: two stems, one init, an empty cache.

    Its songs are those of dvc.lock, but no training ends with the same bits.
    """
    folder = tmp_path / "newcomer"
    finished(f"git clone --quiet . {shlex.quote(str(folder))}")
    clone = Project(folder, finished.env | {"PYTHONPATH": str(folder)})
    lock = yaml.safe_load(clone.path("dvc.lock").read_text())
    for stage in lock["stages"].values():
        for entry in (*stage["deps"], *stage["outs"]):
            if entry["path"].startswith(("runs", "results", "models", "listen")):
                other = hashlib.md5(entry["md5"].encode()).hexdigest()
                entry["md5"] = other + ".dir" * entry["md5"].endswith(".dir")
    clone.path("dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    stems = clone.path("conf/stem/all.yaml")
    stems.write_text(re.sub(r"\[.*\]", "[bass, other]", stems.read_text()))
    config = clone.path("conf/config.yaml")
    config.write_text(re.sub("inits: .*", "inits: [scratch]", config.read_text()))
    clone("jukesep compose")
    clone("git commit --quiet --all --message 'Another machine'")
    return clone


def test_the_way_back_of_a_newcomer(newcomer: Project):
    """Nothing is committed, and nothing is trained a second time."""
    stages = _stages(("bass", "other"), ("scratch",))
    said = newcomer("dvc repro")
    assert _ran(said) == stages
    before = newcomer.tree(*RESULTS)
    # Edits of the user that must stay.
    newcomer.path("notes.txt").write_text("mine")
    with newcomer.path("jukesep/cli.py").open("a") as file:
        file.write("\n# mine\n")

    assert _ran(newcomer("uv run dvc exp run -S stem=other --name one")) <= UNTRAINED
    assert not newcomer.path("runs/stage2/bass_scratch").exists()
    assert _ran(newcomer("uv run dvc exp run --name both")) <= {"report"}
    assert newcomer.tree(*RESULTS) == before
    assert newcomer.path("notes.txt").read_text() == "mine"
    assert newcomer.path("jukesep/cli.py").read_text().endswith("\n# mine\n")
    assert {"one", "both"} <= _experiments(newcomer)

    # The same experiment again, after the record of this machine's outputs is thrown away.
    experiment = "uv run dvc exp run -S stem=other -S seed=1 stage2@other-scratch"
    assert _kinds(_ran(newcomer(experiment))) == {"weights", "stage1", "stage2"}
    once = newcomer.tree("runs/stage1/other_scratch", "runs/stage2/other_scratch")
    newcomer("git restore .")
    newcomer("git clean -fd --quiet")
    assert _ran(newcomer(experiment)) == set()
    assert newcomer.tree("runs/stage1/other_scratch", "runs/stage2/other_scratch") == once

    newcomer("git restore .")
    newcomer.path("dvc.lock").unlink()
    assert _ran(newcomer("uv run dvc repro")) <= {"report"}
    assert newcomer.tree(*RESULTS) == before


def _kinds(stages: set[str]) -> set[str]:
    return {name.split("@")[0] for name in stages}


SHOWN = "uv run dvc exp show --only-changed --drop '.*/|runs' --keep '.*total'"


@readme(
    "uv run dvc exp run -S scale=tiny -S stem=drums,bass --queue", "uv run dvc queue start", SHOWN
)
def test_queue(project: Project):
    known = _experiments(project)
    project("uv run dvc exp run -S scale=tiny -S stem=drums,bass --queue")
    # The queue works on what was queued, in a folder of its own.
    with project.path("jukesep/report/write.py").open("a") as file:
        file.write('\nraise SystemExit("edited after queueing")\n')
    try:
        project("uv run dvc queue start")
        _wait_for_the_queue(project, timeout=300)
    finally:
        project("dvc queue stop --kill")
        project("git restore jukesep/report/write.py")
    assert project("git status --porcelain") == ""
    names = _experiments(project) - known
    assert len(names) == 2
    _tables_one_can_read(project, names)
    stems = set()
    for name in names:
        (ref,) = project(f"git for-each-ref --format=%(refname) refs/exps/*/*/{name}").split()
        written = json.loads(project(f"git show {ref}:metrics/sdr/pretrained_late.json"))
        (stem,) = written.keys() - {"step"}
        assert written[stem] == project.metrics("sdr/pretrained_late")[stem]
        assert f"stem: {stem}\n" in project(f"git show {ref}:params.yaml")
        stems.add(stem)
    assert stems == {"drums", "bass"}


def _tables_one_can_read(project: Project, experiments: set[str]) -> None:
    """`dvc exp show`, and the README's line for it."""
    (row, *_) = csv.reader(project("dvc exp show --csv").splitlines())
    dependencies = {
        dep
        for stage in yaml.safe_load(project.path("dvc.lock").read_text())["stages"].values()
        for dep in (entry["path"] for entry in stage["deps"])
    }
    assert len([name for name in row if name.startswith("metrics/")]) <= 36
    # One for each training that another stage reads, and these.
    trained = re.compile("runs/(weights|stage1|stage2)/")
    assert len([name for name in row if name in dependencies and not trained.match(name)]) <= 39

    table = list(csv.DictReader(project(SHOWN, plus="--csv").splitlines()))
    columns = set(table[0])
    assert len(columns) <= 20
    totals = {f"metrics/sdr/{init}_{name}.json:total" for init in INITS for name in STEPS}
    assert {"Experiment", "stem", *totals} <= columns
    assert not columns & dependencies
    assert {row["Experiment"] for row in table} >= experiments
    head = next(row for row in table if row["rev"] == "main")
    for column in totals:
        name = column.removeprefix("metrics/").removesuffix(".json:total")
        assert float(head[column]) == project.metrics(name)["total"]


def _wait_for_the_queue(project: Project, timeout: float) -> None:
    end, idle = time.monotonic() + timeout, 0
    while True:
        status = project("dvc queue status")
        # On a busy machine DVC's worker may stop while a task is queued.
        idle = idle + 1 if "0 active, 0 idle" in status else 0
        if idle == 5 and "Queued" in status:
            project("dvc queue start")
        if "Failed" in status:
            failed = re.findall(r"^(\w+) .*Failed", status, re.MULTILINE)
            pytest.fail(status + "".join(project(f"dvc queue logs {task}") for task in failed))
        if not re.search("Queued|Running", status):
            assert status.count("Success") == 2, status
            return
        assert time.monotonic() < end, status
        time.sleep(2)


@readme(
    "uv run dvc exp run -S stage1.steps=320", "uv run dvc metrics diff", "uv run dvc plots diff"
)
def test_one_parameter_changed(project: Project):
    # One training instead of eight.
    plus = "-S stem=bass -S 'inits=[scratch]' --name longer"
    said = project("uv run dvc exp run -S stage1.steps=320", plus=plus)
    stages = _stages(("bass",), ("scratch",))
    assert {name for name in stages if name.split("@")[0] in TRAININGS} <= _ran(said)
    assert "prepare" not in _ran(said)

    header, *rows = project("uv run dvc metrics diff").splitlines()
    assert "Change" in header
    # The systems under test alone, each in one block; DVC prints the blocks in any order.
    blocks = [name for name, _ in itertools.groupby(rows, lambda row: row.split()[0])]
    assert sorted(blocks) == SHOWN_METRICS
    changes = json.loads(project("dvc metrics diff --json"))
    change = changes["metrics/sdr/scratch_late.json"]["bass"]
    assert change["diff"] == pytest.approx(change["new"] - change["old"])
    assert change["diff"] != 0

    project("uv run dvc plots diff")
    page = project.path("dvc_plots/index.html").read_text()
    _needs_no_network(page)
    assert _charts(page) == 6
    assert '"rev": "HEAD"' in page
    assert '"rev": "workspace"' in page

    project("git restore .")
    project("dvc checkout")
    project("dvc exp apply longer")
    assert "steps: 320" in project.path("params.yaml").read_text()
    assert list(project.metrics("sdr/scratch_late")) == ["step", "bass"]


def test_weights_from_a_file(project: Project, tmp_path: Path):
    """Weights of Jukebox's layout from elsewhere; one init alone is reported alone."""
    made = project.path("runs/weights/pretrained/vqvae.pth.tar")
    file = Path(shutil.copy(made, tmp_path))
    before = project.metrics("sdr/pretrained_late")["bass"]
    said = project(
        "uv run dvc exp run -S stem=bass -S 'inits=[pretrained]' "
        f"-S weights=file -S weights.file={file}"
    )
    assert _considered(said) == _stages(("bass",), ("pretrained",))
    assert {name.split("/")[-1] for name in project.tree("metrics")} == {
        *(f"pretrained_{name}.json" for name in STEPS),
        *(f"{name}.json" for name in (*BASELINES, "static_equaliser", "ceiling_pretrained")),
    }
    # The same weights train to the same model.
    assert project.metrics("sdr/pretrained_late") == {"step": 6, "bass": before}
    # Other content under the same name.
    with file.open("ab") as stream:
        stream.write(b"!")
    assert "weights@pretrained" in _ran(project("dvc repro --dry"))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("stem=othr", ["'stem/othr'", "all", *STEMS]),
        ("stage1.stepz=3", ["stage1.stepz"]),
        ("stage1.steps=0", ["stage1.steps", "greater than or equal to 1"]),
    ],
)
def test_a_setting_that_does_not_fit_is_named(project: Project, override: str, named: list[str]):
    known = _experiments(project)
    said = project(f"dvc exp run -S {override}", status=255)
    assert all(name in said for name in named)
    assert "Traceback" not in said
    assert _experiments(project) == known


# --- metrics and plots ------------------------------------------------------------------------


@readme("uv run dvc metrics show", "uv run dvc metrics show metrics/baselines")
def test_metrics_show_one_kind_of_sdr(unchanged: Project):
    said = unchanged("uv run dvc metrics show")
    header, *rows = said.splitlines()
    # DVC orders columns by name.
    assert header.split() == ["Path", *sorted([*STEMS, "step", "total"])]
    files = [row.split()[0] for row in rows]
    assert files == SHOWN_METRICS
    for folder in ("baselines", "held_out", "sdr_mdx", "sdr_v4"):
        said = unchanged(f"dvc metrics show metrics/{folder}")
        assert {row.split()[0] for row in said.splitlines()[1:]} == set(
            unchanged.tree(f"metrics/{folder}")
        )


def _charts(page: str) -> int:
    return len(re.findall(r"\bvegaEmbed\('#plots_\w+_csv', spec\)", page))


def _needs_no_network(page: str) -> None:
    page = re.sub(r"(<script\b[^>]*>).*?</script>", r"\1", page, flags=re.DOTALL)
    outside = re.findall(
        r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)\s*=(?!\"static/)[^>]*>", page
    )
    assert outside == []
    assert not re.search(r"@import|url\(['\"]?https?:", page)


@pytest.fixture(scope="module")
def shown(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What `dvc plots show` said, and a copy of its page."""
    said = finished("uv run dvc plots show")
    copy = shutil.copytree(finished.path("dvc_plots"), tmp_path_factory.mktemp("shown") / "plots")
    return said, copy / "index.html"


@readme("uv run dvc plots show")
def test_plots_show_opens_offline(unchanged: Project, shown: tuple[str, Path]):
    said, path = shown
    assert unchanged.path("dvc_plots/index.html").as_uri() in said
    page = path.read_text()
    _needs_no_network(page)
    assert _charts(page) == 6
    pictures = {path.stem for path in unchanged.path("plots").glob("*.png")}
    assert {f"plots_{name}_png" for name in pictures} <= set(re.findall(r'id="(\w+)"', page))
    assert "failed" not in said


def test_plots_open_in_a_browser(shown: tuple[str, Path]):
    """Every chart is drawn by a real browser that has no network."""
    # Vega says so of templates in the schema that DVC's editors know; it draws them the same.
    expected = "The compiled spec uses Vega v5, but current version is v6"
    with opened(shown[1], expected) as page:
        wait(page, "document.querySelectorAll('svg.marks').length === 6")
        for chart in page.query_selector_all("svg.marks"):
            assert len(chart.query_selector_all("path, text")) > 20


# --- the models -------------------------------------------------------------------------------


SEPARATED = (
    "uv run jukesep separate song.wav -o stems",
    "uv run jukesep separate songs/ more.flac -o stems --format flac",
    "uv run jukesep separate song.wav -o karaoke --stems vocals --residual",
    "uv run jukesep separate song.wav -o plain --refine none",
    "uv run jukesep listen stems",
)


@readme(*SEPARATED)
def test_separate_uses_the_models_of_the_pipeline(unchanged: Project, tmp_path: Path):
    """In a folder with songs and the models of the pipeline."""
    own = replace(unchanged, folder=tmp_path)
    own.path("models").symlink_to(unchanged.path("models"))
    own.path("songs").mkdir()
    found = sorted(unchanged.path("data/prepared/songs/test").iterdir())
    song, rate = soundfile.read(found[0] / "mixture.wav", dtype="float32")
    soundfile.write(own.path("song.wav"), song, rate, subtype="FLOAT")
    for name in ("songs/one.wav", "songs/two.wav", "more.flac"):
        soundfile.write(own.path(name), song[:rate], rate)
    first, several, karaoke, plain, listen = SEPARATED

    said = own(first)
    files = [f"stems/song/{stem}.wav" for stem in STEMS]
    assert all(file in said for file in files)
    stems = [_read(own, file, song.shape, rate) for file in files]
    np.testing.assert_allclose(sum(stems), song, atol=1e-4)
    said = own(several)
    for name in ("one", "two", "more"):
        files = [f"stems/{name}/{stem}.flac" for stem in STEMS]
        assert all(file in said for file in files)
        parts = [_read(own, file, (rate, 2), rate) for file in files]
        np.testing.assert_allclose(sum(parts), song[:rate], atol=1e-4)
    own(karaoke)
    assert [path.name for path in sorted(own.path("karaoke/song").iterdir())] == [
        "no_vocals.wav",
        "vocals.wav",
    ]
    vocals = _read(own, "karaoke/song/vocals.wav", song.shape, rate)
    np.testing.assert_array_equal(vocals, stems[STEMS.index("vocals")])
    rest = _read(own, "karaoke/song/no_vocals.wav", song.shape, rate)
    np.testing.assert_allclose(vocals + rest, song, atol=1e-6)
    own(plain)
    # As in the paper: each model alone, so that they need not add up.
    total = sum(_read(own, f"plain/song/{stem}.wav", song.shape, rate) for stem in STEMS)
    assert np.abs(total - song).max() > 1e-2
    assert str(own.path("stems-listen/index.html")) in own(listen)
    page = own.path("stems-listen/index.html").read_text()
    assert all(name in page for name in ("song", "one", "two", "more", *STEMS))

    (example,) = blocks(read("README.md"), "python")
    said = own(f"python -c {shlex.quote(example)}")
    assert float(said) > 30  # dB: the stems add up to the mixture


def _read(project: Project, name: str, shape: tuple[int, ...], rate: int) -> np.ndarray:
    samples, found = soundfile.read(project.path(name), dtype="float32")
    assert (samples.shape, found) == (shape, rate)
    return samples


# --- the rest of the README -------------------------------------------------------------------


@readme("uv run jukesep compose")
def test_an_edit_in_conf_becomes_a_parameter(project: Project):
    path = project.path("conf/scale/tiny.yaml")
    path.write_text(path.read_text().replace("learning_rate: 1.0e-3", "learning_rate: 0.004"))
    before = project.path("params.yaml").read_text()
    project("uv run jukesep compose")
    after = project.path("params.yaml").read_text()
    assert after == before.replace("learning_rate: 0.001", "learning_rate: 0.004") != before


@readme("uv run pytest")
def test_the_tests_run(unchanged: Project):
    """One file of them: this one would never end."""
    said = unchanged("uv run pytest", plus="-n 0 tests/base/test_unchanged.py")
    assert re.search(r"\b[1-9]\d* passed", said)


@readme("uv run python -m benchmarks paper-gpu")
def test_the_benchmark_says_that_it_needs_a_gpu(project: Project):
    hidden = {"python": "env CUDA_VISIBLE_DEVICES= python"}
    said = project("uv run python -m benchmarks paper-gpu", instead=hidden)
    assert re.search(r"^paper-gpu: not measured here: .*NVIDIA GPU", said, re.MULTILINE)


def test_every_command_of_the_readme_is_run_by_a_test():
    assert set(map(_short, readme_commands())) == set(MARKED)
