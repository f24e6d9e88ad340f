"""Every row, measured once in a small form."""

import os
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks import __main__ as command
from benchmarks import commands, gpu, measuring, paper_scale, row, scoring, sides, steps
from benchmarks.steps import Case
from jukesep import audio
from jukesep.base import params
from jukesep.base.errors import UserError
from jukesep.kernels.cpu import tiles
from jukesep.model.vqvae import Architecture
from jukesep.scoring import metrics
from jukesep.songs.manifest import MIXTURE, STEMS, Manifest, Song

ROWS = command.rows()
SMALL = Architecture(width=8, depth=2, latent_dim=8, codes=16)


@pytest.fixture
def _small(monkeypatch):
    """Small models, and measurements in this process: others take seconds to start."""
    for module in (sides, steps):
        monkeypatch.setattr(module, "PAPER", SMALL)
        monkeypatch.setattr(module, "DEMO", SMALL)
    monkeypatch.setattr(sides, "GEMM", 64)
    here = lambda count, run, *args: run(*args)  # noqa: E731
    monkeypatch.setattr(measuring, "fresh", here)
    monkeypatch.setattr(steps, "fresh", here)
    monkeypatch.setattr(scoring, "fresh", here)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_code_that_a_row_measures_is_there():
    for name, one in ROWS.items():
        assert all((measuring.ROOT / path).exists() for path in one.files), name
        assert one.files[-1].startswith("benchmarks/"), name
        assert not any("report" in path for path in one.files), name
    assert {name for name, one in ROWS.items() if not one.in_suite} == {
        "repro", "paper-cpu", "paper-gpu"
    }  # fmt: skip


def test_the_arithmetic_is_the_papers():
    """Numbers that were counted apart from this code."""
    assert sides.flops(Architecture()) == {
        "encoder": 244_992, "decoder": 261_504, "quantiser": 32_768
    }  # fmt: skip
    work = sides.work(Architecture())
    assert work == {"stage1": 1_552_256, "stage2": 979_968, "separation": 539_264}


@pytest.mark.parametrize(
    "architecture", [SMALL, Architecture(width=4, depth=1, downs=(2, 1), latent_dim=6, codes=8)]
)
def test_the_arithmetic_is_that_of_the_shapes(architecture):
    """Each layer's products, from the values that go in and come out."""
    vqvae, sound = sides.model(architecture, 1, 1024)
    counted = []

    def count(layer, given, made):
        values = given[0] if isinstance(layer, torch.nn.ConvTranspose1d) else made
        counted.append(2 * layer.weight.numel() * values.shape[2])

    found = sides.flops(architecture)
    for part, network in (("encoder", vqvae.encoder), ("decoder", vqvae.decoder)):
        counted.clear()
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
                layer.register_forward_hook(count)
        if part == "encoder":
            latents = network.blocks(sound)
        else:
            network.out(network.blocks(latents))
        assert sum(counted) / sound.shape[2] == found[part]


@pytest.mark.usefixtures("_small")
def test_both_sides_of_a_case_are_measured(monkeypatch):
    peaks = {"textbook": 30.0, "jukesep": 10.0}
    monkeypatch.setattr(steps, "fresh", lambda count, run, case, side: (0.1, peaks[side]))
    case = Case("separation", architecture=SMALL, samples=2048)
    found = steps.compare(case, 0.1)
    seconds = [found.sides[side]["seconds"] for side in ("textbook", "jukesep")]
    assert found.figures["speed"] == pytest.approx(seconds[0] / seconds[1])
    assert found.figures["memory"] == pytest.approx(1 / 3)
    rate, limit = found.details["flops"] / seconds[1], found.details["limit"]
    assert found.details["flops"] == 2048 * sides.work(SMALL)["separation"]
    assert found.figures["share of the limit"] == pytest.approx(100 * rate / limit)
    monkeypatch.setattr(steps, "PAPER_RATE", 2048)
    monkeypatch.setattr(steps, "DEMO", None)
    assert case.seconds == 1


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("what", sides.CODE)
@pytest.mark.parametrize("pair", [("textbook", "jukesep"), ("fp32", "bf16")])
def test_every_side_runs_by_itself(what, pair):
    for side in pair:
        seconds, megabytes = steps.alone(Case(what, pair, SMALL, 1, 2048), side)
        assert seconds > 0
        assert megabytes >= 0


@pytest.mark.usefixtures("_small")
def test_a_step_that_learns_changes_the_weights(monkeypatch):
    kept = []
    made = sides.model

    def model(*args):
        kept.append(made(*args))
        return kept[-1]

    monkeypatch.setattr(sides, "model", model)
    for side in ("textbook", "jukesep"):
        for learn in (False, True):
            step = sides.step("stage1", side, SMALL, 1, 2048, learn=learn)
            before = torch.cat([p.detach().flatten() for p in kept[-1][0].parameters()])
            step()
            after = torch.cat([p.detach().flatten() for p in kept[-1][0].parameters()])
            assert torch.equal(before, after) is not learn


def _seconds_by_switch(count, run, *args):
    """In place of a process of its own: who is slower says what it was given."""
    return (3.0 if os.environ.get("JUKESEP_KERNELS") == "off" else 1.0), 10.0


def test_plain_torch_runs_with_the_switch_off(monkeypatch):
    monkeypatch.setattr(steps, "fresh", _seconds_by_switch)
    found = steps.kernels(steps.DEMO_SIZE["stage1"])
    assert list(found.sides) == ["plain torch", "jukesep"]
    assert found.figures == {"speed": 3.0, "memory": 1.0}
    assert "JUKESEP_KERNELS" not in os.environ
    monkeypatch.setenv("JUKESEP_KERNELS", "off")
    assert measuring.fresh(0, os.getenv, "JUKESEP_KERNELS") == "off"


@pytest.mark.usefixtures("_small")
def test_bf16_is_skipped_where_the_processor_has_none(monkeypatch):
    monkeypatch.setattr(measuring, "features", lambda: ["avx2"])
    with pytest.raises(row.Skipped, match="bf16"):
        ROWS["bf16-stage1"].measure()


@pytest.mark.usefixtures("_small")
def test_a_song_is_measured_against_the_limit():
    found = steps.song("fp32", 0.2)
    assert found.figures["real time"] > 0
    work = sides.work(SMALL)["separation"]
    assert found.details["flops"] == pytest.approx(0.2 * 44_100 * 2 * 4 * work)
    assert 0 < found.figures["cores busy"] < 1.5 * measuring.cores()


@pytest.mark.usefixtures("_small")
def test_the_parts_of_a_step_make_it_up():
    found = steps.breakdown(samples=2048)
    assert list(found.details["parts"]) == ["textbook", "jukesep"]
    for side in found.details["parts"].values():
        assert set(side) == {*steps.PARTS, "step", "rest"}
        parts = sum(side[part] for part in (*steps.PARTS, "rest"))
        assert parts == pytest.approx(side["step"])


def test_growth_has_a_point_for_each_size(monkeypatch):
    monkeypatch.setattr(steps, "fresh", lambda count, run, *args: (0.5, 12.0))
    sizes = {"growth-segment": 4, "growth-batch": 3, "growth-song": 3}
    for name, count in sizes.items():
        points = ROWS[name].measure().details["points"]
        assert len(points["jukesep"]) == count
        assert points["jukesep"][0][1:] == [0.5, 12.0]
    assert len(points["textbook"]) == 2  # not of long songs


def test_sdr_v4_is_compared_with_musevals(monkeypatch):
    """With a stand-in for museval, which takes seconds; tests/scoring has the real one."""

    def bss_eval(references, estimates, window, hop):
        stems = (np.moveaxis(array, 2, 1) for array in (references, estimates))
        return metrics.framewise_sdr(*stems, window) + 1e-3, None, None, None, None

    stand_in = types.SimpleNamespace(bss_eval=bss_eval)
    monkeypatch.setattr(metrics, "museval_metrics", lambda: stand_in)
    found = scoring.sdr_v4(seconds=1)
    assert found.figures["difference"] == pytest.approx(1e-3)
    assert found.figures["speed"] > 0


@pytest.mark.usefixtures("_small")
def test_the_evaluation_runs_what_its_models_alone_run(monkeypatch):
    here = Path.cwd()
    found = scoring.evaluation(songs=1, seconds=0)
    assert found.sides["whole"]["seconds"] > 0
    assert found.figures["cores busy"] > 0
    monkeypatch.setattr(measuring, "cores", lambda: 2)
    (line,) = scoring.by_cores(songs=1).details["points"].values()
    assert [point[0] for point in line] == [1, 2]
    assert Path.cwd() == here


@pytest.mark.usefixtures("_small")
def test_precisions_are_compared_by_their_scores(monkeypatch):
    monkeypatch.setattr(measuring, "cores", lambda: 1)  # it changes the current folder
    monkeypatch.setattr(measuring, "features", lambda: [])
    shorter = (
        "scale=tiny", "band.train=2", "band.valid=1", "band.test=1",
        "stage1.steps=2", "stage2.steps=2", "stage2.checkpoints=[2]", "band.pretrain=1",
    )  # fmt: skip
    found = scoring.precision(shorter, stems=("bass",))
    sdr = found.details["sdr"]
    exact = sdr["fp32 bass"]["fp32"]
    assert found.figures == {
        "loss by training in bf16": exact - sdr["bf16 bass"]["fp32"],
        "loss by separating in bf16": exact - sdr["fp32 bass"]["bf16"],
        "SDR in fp32": exact,
    }
    # Rounded, but the same model. A processor that does not multiply bfloat16 does not round.
    assert abs(found.figures["loss by separating in bf16"]) < 0.1
    assert (found.figures["loss by separating in bf16"] != 0) == bool(tiles.ROUNDS)


def test_prepare_is_timed_twice():
    found = commands.prepare(songs=3, seconds=10)
    assert found.figures["second time"] > 0
    assert "3 songs of" in found.note


def test_the_songs_are_sums(tmp_path):
    commands.make_songs(tmp_path, 2, 0.1)
    folder, _ = sorted(tmp_path.glob("*/*"))
    parts = {path.stem: audio.read(path) for path in folder.glob("*.wav")}
    mixture = parts.pop("mixture")
    assert len(parts) == 4
    np.testing.assert_allclose(sum(parts.values()), mixture, atol=1e-6)


def test_reading_is_timed():
    found = commands.reading(songs=2, seconds=0.5, segment=4096)
    assert 0 < 1e3 * found.sides["jukesep"]["seconds"] <= found.figures["95 % take at most"]


@pytest.mark.usefixtures("_small")
def test_separating_is_measured_by_the_command(monkeypatch):
    peaks, command = iter((100e6, 130e6)), commands._command

    def run(arguments):
        taken, peak = command(arguments)
        assert 50e6 < peak < 500e9  # bytes
        song, folder = (Path(arguments[place]) for place in (1, 3))
        seconds = soundfile.info(folder / song.stem / "drums.wav").duration
        assert seconds == soundfile.info(song).duration == int(song.stem)
        return taken, next(peaks)

    monkeypatch.setattr(commands, "_command", run)
    found = commands.hour(rate=8000, lengths=(6, 12))
    assert [side["megabytes"] for side in found.sides.values()] == [100, 130]
    assert list(found.sides) == ["0.1 minutes", "0.2 minutes"]
    assert found.figures == {"growth": 30}


@pytest.mark.usefixtures("_small")
def test_a_small_chunk_is_compared_with_the_default(monkeypatch):
    peaks, command, given = iter((200e6, 150e6)), commands._command, []

    def run(arguments):
        given.append(arguments)
        return command(arguments)[0], next(peaks)

    monkeypatch.setattr(commands, "_command", run)
    found = commands.small_chunks(rate=8000, seconds=2)
    assert ["--chunk" in arguments for arguments in given] == [False, True]
    assert found.figures == {"memory": 0.75}


LINES = [
    (1.0, "Running stage 'prepare':\n"),
    (9.0, "band: 100%|##########| 196/196 [00:06<00:00, 5.69song/s]\n"),
    (10.0, "prepare: check:  50%|#####     | 98/196 [00:01<00:01, 80.5song/s]\n"),
    (11.0, "prepare: check: 100%|##########| 196/196 [00:02<00:00, 80.5song/s]\n"),
    (12.0, "Running stage 'stage1@drums-pretrained':\n"),
    (13.0, "stage1 drums: 100%|##########| 160/160 [1:00:05<00:00, 29.0step/s, loss=0.3]\n"),
    (20.0, "Running stage 'stage1@bass-pretrained':\n"),
]


def test_the_seconds_of_stages_are_those_between_their_lines():
    assert commands._stages(LINES, 25.0) == {
        "prepare": {"runs": 1, "seconds": 11.0, "progress": 8.0},
        "stage1": {"runs": 2, "seconds": 13.0, "progress": 3605.0},
    }


def test_trainings_side_by_side_count_once():
    """Of the bars of one stage, those of trainings overlap; others follow each other."""
    bars = (
        "songs: digests: 100%|##| 2/2 [00:03<00:00]",
        "stage2 a x: 50%|# | 1/2 [00:20<00:20]",
        "stage2 a y: 100%|##| 2/2 [00:30<00:00]",
        "stage2 a x: 100%|##| 2/2 [00:40<00:00]",
    )
    lines = [(0.0, "Running stage 'stage2@a-x':"), *((1.0, line) for line in bars)]
    assert commands._stages(lines, 50.0) == {
        "stage2": {"runs": 1, "seconds": 50.0, "progress": 43.0}
    }


TRAIN = """\
import json, pathlib, sys
path = pathlib.Path("metrics/sdr/pretrained_late.json")
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps({"step": 9, "total": 2.25}))
print("stage1 drums: 100%|#####| 2/2 [00:07<00:00, 5.69step/s, loss=0.3]", file=sys.stderr)
"""
STAGES = """\
stages:
  stage1:
    cmd: python train.py
    metrics:
      - metrics/sdr/pretrained_late.json:
          cache: false
"""


def test_the_demo_runs_in_a_clone_and_its_scores_are_compared(tmp_path, monkeypatch):
    """With a project of one stage, by DVC itself."""
    root = tmp_path / "project"
    metric = root / "metrics/sdr/pretrained_late.json"
    for path, text in {
        metric: '{"step": 9, "total": 2.5}',
        root / ".dvc/config": "[core]\n    analytics = false\n",
        root / "train.py": TRAIN,
        root / "dvc.yaml": STAGES,
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for line in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "1"]):
        subprocess.run(["git", *line], cwd=root, check=True)
    for kind in ("GLOBAL", "SYSTEM"):
        monkeypatch.setenv(f"DVC_{kind}_CONFIG_DIR", str(tmp_path / "dvc"))
    monkeypatch.setattr(commands, "ROOT", root)
    found = commands.repro()
    assert found.figures["change of the lowest score"] == -0.25
    assert found.figures["minutes"] == found.sides["jukesep"]["seconds"] / 60
    stage = found.details["stages"]["stage1"]
    assert (stage["runs"], stage["progress"]) == (1, 7.0)
    assert 0 < stage["seconds"] < found.sides["jukesep"]["seconds"]
    outside = found.sides["jukesep"]["seconds"] - stage["progress"]
    assert found.figures[commands.OUTSIDE] == pytest.approx(outside)
    # In the clone: here nothing has been written.
    assert metric.read_text() == '{"step": 9, "total": 2.5}'
    assert not (root / "dvc.lock").exists()


def test_the_repository_has_scores_to_compare():
    assert "pretrained_late" in commands.totals(measuring.ROOT)


def test_a_program_is_followed_line_by_line_and_named_when_it_fails(tmp_path):
    lines = commands.python(tmp_path, "-c", "print('one'); print('a\\rb')")
    assert [line for _, line in lines] == ["one\n", "a\n", "b\n"]
    with pytest.raises(UserError, match=r"failed:\nno"):
        commands.python(tmp_path, "-c", "raise SystemExit('no')")


# --- at the paper's size, and on a GPU -----------------------------------------------------------


def _noise_songs(parameters, folder):
    """In place of `prepare`: a song of noise in each split."""
    songs, samples = [], int(parameters.band.seconds * 44_100)
    for split in ("train", "valid", "test"):
        song = Song(split, split, "test", folder / split, samples)
        for seed, part in enumerate((MIXTURE, *STEMS)):
            noise = np.random.default_rng(seed).uniform(-0.1, 0.1, (2, samples))
            audio.write(song.file(part), noise.astype(np.float32), 44_100, "FLOAT")
        songs.append(song)
    Manifest(44_100, tuple(songs)).save(folder / "manifest.json")


def test_the_papers_size_is_measured_in_both_stages(monkeypatch):
    monkeypatch.setattr(paper_scale.prepare, "prepare", _noise_songs)
    sizes = [
        f"{stage}.{size}" for stage in ("stage1", "stage2") for size in ("segment=2048", "batch=1")
    ]
    found = paper_scale.measure("device=cpu", "threads=1", *sizes, steps=1)
    assert list(found.details["stages"]) == ["stage1", "stage2"]
    for one in found.details["stages"].values():
        assert one["steps"] == one["threads"] == 1
        assert 0 < one["seconds"] < 60
        assert one["memory"] >= one["imported"] > 1e8
        assert (one["encoder"], one["decoder"]) == (441_856, 458_177)


def test_it_differs_from_the_paper_in_length_alone(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(params.compose(["scale=paper"], measuring.ROOT / "conf"))
    paper, found = params.load(path), paper_scale.compose(tmp_path, 3)
    for section in ("model", "codebook", "losses"):
        assert getattr(found, section) == getattr(paper, section)
    changed = {"steps", "checkpoints", "log_every", "valid_every", "valid_segments"}
    for stage in paper_scale.STAGES:
        recipe = getattr(paper, stage)
        assert (recipe.steps, recipe.segment, recipe.batch) == (
            paper_scale.STEPS, paper_scale.SEGMENT, paper_scale.BATCH
        )  # fmt: skip
        one, other = (getattr(of, stage).model_dump(exclude=changed) for of in (found, paper))
        assert one == other
    # The shortest song that the band may render holds a segment.
    assert 0.9 * found.band.seconds * found.model.sample_rate > paper_scale.SEGMENT


@pytest.mark.parametrize("step", [100.0, 0.05])
def test_the_seconds_of_a_step_leave_out_the_first_and_the_last(tmp_path, step):
    ends = [9 * step, 10 * step, 12 * step, 13 * step, 20 * step]
    lines = ["step,seconds,steps_per_second"]
    for number, (start, end) in enumerate(zip([0.0, *ends], ends, strict=False), 1):
        lines.append(f"{number},{end:.2f},{1 / (end - start):.3f}")
    (tmp_path / "timing.csv").write_text("\n".join(lines) + "\n")
    assert paper_scale.step_seconds(tmp_path / "timing.csv") == pytest.approx(step, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("name", ["gpu", "paper-gpu"])
def test_without_a_gpu_its_rows_are_skipped(name):
    with pytest.raises(row.Skipped, match="NVIDIA GPU"):
        ROWS[name].measure()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_is_measured():
    page = gpu.page(row.Result(
        details=gpu.measure(rounds=1).details, machine=measuring.machine(), code={"commit": "1"}
    ))  # fmt: skip
    assert torch.cuda.get_device_name() in page


def test_the_data_side_is_timed():
    assert gpu._segments_a_second(2, "cpu", segment=2048, batches=3) > 0


def test_the_kernels_are_named_as_they_are():
    files = (measuring.ROOT / "jukesep/kernels/gpu").glob("*.py")
    code = "".join(path.read_text(encoding="utf-8") for path in files)
    assert all(f"@triton.jit\ndef {name}(" in code for name in gpu.KERNELS)


def test_the_floor_is_of_operations_and_bytes():
    ceilings = {"bytes": 4e12, "fp32": 5e13, "bf16": 8e14}
    arithmetic, memory = gpu.floor("stage1", "bf16", ceilings)
    samples = 4 * 393_216
    assert arithmetic == pytest.approx(1_552_256 * samples / 8e14)
    # 16 blocks at 1/2, 1/4 and 1/8 of the rate, 64 channels, ten times two bytes.
    assert memory == pytest.approx(16 * samples * 7 / 8 * 64 * 20 / 4e12)
    assert gpu.floor("stage1", "fp32", ceilings)[1] == pytest.approx(2 * memory)
