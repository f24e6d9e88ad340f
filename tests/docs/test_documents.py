"""Every command of the user's pages is run by a test or by .ci/run, and the pins agree."""

import re
import tomllib

from documents import blocks, read

# What a user reads first: the README and the pages that it leads to.
PAGES = (
    "README.md",
    "docs/experiments.md",
    "docs/index.md",
    "docs/python.md",
    "docs/separation.md",
    "docs/training.md",
    "docs/verification.md",
)
PIPELINE = "tests/pipeline/test_pipeline.py"
README = "tests/docs/test_readme.py"

# A command of theirs -> what runs it: a test, or .ci/run.
COVERED = {
    "pip install uv && uv run dvc repro": f"{PIPELINE}::test_repro_makes_the_experiment",
    "uv run pytest": ".ci/run",
    "uv run dvc repro": f"{PIPELINE}::test_repro_makes_the_experiment",
    "uv run dvc exp run -S stem=other": f"{PIPELINE}::test_one_stem",
    "uv run dvc exp run -S stage1.steps=320": f"{PIPELINE}::test_one_parameter_changed",
    "uv run dvc exp run -S scale=tiny -S stem=drums,bass --queue": f"{PIPELINE}::test_queue",
    "uv run dvc queue start": f"{PIPELINE}::test_queue",
    "uv run dvc exp show --only-changed --drop '.*/|runs' --keep '.*total'": (
        f"{PIPELINE}::test_queue"
    ),
    "uv run dvc metrics show": f"{PIPELINE}::test_metrics_show_one_kind_of_sdr",
    "uv run dvc metrics diff": f"{PIPELINE}::test_one_parameter_changed",
    "uv run dvc plots show": f"{PIPELINE}::test_plots_show_opens_offline",
    "uv run dvc plots diff": f"{PIPELINE}::test_one_parameter_changed",
    "uv run dvc exp run": f"{PIPELINE}::test_the_way_back_of_a_newcomer",
    "rm dvc.lock && uv run dvc repro": f"{PIPELINE}::test_the_way_back_of_a_newcomer",
    "uv run jukesep separate song.wav -o stems": f"{README}::test_the_jukesep_commands_run",
    "uv run jukesep separate songs/ more.flac -o stems --format flac": (
        f"{README}::test_the_jukesep_commands_run"
    ),
    "uv run jukesep separate song.wav -o karaoke --stems vocals --residual": (
        f"{README}::test_the_jukesep_commands_run"
    ),
    "uv run jukesep separate song.wav -o plain --refine none": (
        f"{README}::test_the_jukesep_commands_run"
    ),
    "uv run jukesep listen stems": f"{README}::test_the_jukesep_commands_run",
    "uv run jukesep info models/separator": f"{README}::test_the_jukesep_commands_run",
    "uv run jukesep import --stage1 stage1.pth.tar --stage2 stage2.pth.tar --stem vocals -o mine": (
        f"{README}::test_the_jukesep_commands_run"
    ),
    "uv run jukesep separate song.wav -o mine-stems --models mine": (
        f"{README}::test_the_jukesep_commands_run"
    ),
    "uv run jukesep evaluate --stage1 stage1.pth.tar --stage2 stage2.pth.tar --stem vocals "
    "--data musdb18hq": f"{README}::test_the_jukesep_commands_run",
    "uv run jukesep evaluate --stage1 stage1.pth.tar --stage2 stage2.pth.tar --stem vocals "
    "--data musdb18hq --chunking hard --output scores.csv": (
        f"{README}::test_the_jukesep_commands_run"
    ),
    "uv run jukesep status": f"{README}::test_the_jukesep_commands_run",
    "uv run jukesep clean": f"{README}::test_the_jukesep_commands_run",
    "uv run jukesep clean --stale": f"{README}::test_the_jukesep_commands_run",
    # The stages' own commands, with it.
    "JUKESEP_NPROC=2 uv run dvc repro": (
        "tests/training/test_processes.py::test_two_processes_compute_what_one_does"
    ),
    # Fewer of them.
    "uv run python -m benchmarks.kills --kills 20": (
        "tests/training/test_processes.py::test_a_training_killed_at_random_moments_ends_with_the_same_bits"
    ),
    # With segments of 2048 samples.
    "uv run python -m benchmarks paper-gpu": (
        "tests/benchmarks/test_rows.py::test_the_papers_size_is_measured_in_both_stages"
    ),
    # Some of them; skipped where there is no GPU.
    "uv run pytest -k cuda": "tests/kernels/test_devices.py::test_a_training_learns",
    "uv run jukesep compose": f"{README}::test_the_jukesep_commands_run",
    "uv run jukesep compose --check": ".ci/run",
    "uv run dvc exp run -S scale=paper -S data=musdb18hq -S data.root=/abs/path": (
        f"{PIPELINE}::test_musdb18hq_in_place"
    ),
    # At tiny scale; its overrides are composed in test_readme.py.
    "uv run dvc exp run -S scale=paper -S weights=file "
    "-S weights.file=/path/to/vqvae.pth.tar": f"{PIPELINE}::test_weights_from_a_file",
}


def test_every_command_is_run():
    found = [block for page in PAGES for block in blocks(read(page), "sh", "bash", "console")]
    lines = [line.split(" #")[0].strip() for block in found for line in block.splitlines()]
    assert {line for line in lines if line and line[0] != "#"} == set(COVERED)


def test_what_runs_them_is_there():
    for command, place in COVERED.items():
        path, _, name = place.partition("::")
        wanted = rf"^def {name}\(" if name else rf"^{re.escape(command)}$"
        assert re.search(wanted, read(path), re.MULTILINE), place


def test_the_lock_file_has_the_pins_of_the_project():
    content = tomllib.loads(read("pyproject.toml"))
    project = content["project"]
    pins = {*project["dependencies"], *project["optional-dependencies"]["pipeline"]}
    pins |= {*content["dependency-groups"]["dev"]} - {"jukesep[pipeline]"}
    lines = read("requirements.lock").splitlines()
    locked = [line.split(" ;")[0].lower() for line in lines]
    # A second version for other Pythons would stand beside a pin.
    names = [line.split("==")[0] for line in locked]
    for pin in pins:
        assert pin.lower() in locked
        assert names.count(pin.lower().split("==")[0]) == 1
    # Versions alone: no address of a package index, no file of somebody's machine.
    assert all(re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+", line) for line in locked)
