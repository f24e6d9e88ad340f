"""Every command that the pages, the messages and the docstrings name is one that its program takes.

tests/pipeline/test_pipeline.py runs those of the README.
"""

import argparse
import fnmatch
import importlib
import itertools
import re
import shlex
import shutil

import pytest
import torch.distributed.run
import typer
import yaml
from documents import PAGES, ROOT, blocks, read, stages
from dvc.cli import parse_args as dvc_takes

from benchmarks.__main__ import rows
from jukesep import cli
from jukesep.base import params, paths
from jukesep.resume import launch
from studies import ablations

SOURCES = [
    path
    for folder in ("jukesep", "stages", "benchmarks", "studies")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
# What a command of the pages may set before it. CUDA reads the last one.
VARIABLES = {launch.PROCESSES, paths.VARIABLE, "CUDA_VISIBLE_DEVICES"}
# What stands for a value of the reader's: a word in capitals.
PLACEHOLDER = re.compile(r"[A-Z]+")


def _lines():
    """Command line -> whether it is complete: one in a sentence may lack what it needs."""
    found = {}
    for path in (*PAGES, *SOURCES):
        text = re.sub(r"\\\n *", "", path.read_text(encoding="utf-8"))
        for line in re.findall(r"`((?:uv run |jukesep |dvc |python -m )[^`\n]*)`", text):
            found.setdefault(line.removesuffix(" ..."), False)
        whole = [line for block in blocks(text, "sh") for line in block.splitlines()]
        whole += re.findall(r"^ *(uv run .*)$", text, re.MULTILINE)
        found |= {line.split(" #")[0].strip(): True for line in whole if line.strip()}
    return found


LINES = _lines()


@pytest.mark.parametrize("line", LINES)
def test_its_program_takes_it(line, monkeypatch):
    words = shlex.split(line)
    for connected, one in itertools.groupby(words, lambda word: word in ("&", "&&")):
        if not connected:
            _takes(list(one), LINES[line], monkeypatch)


def test_a_wrong_one_is_found(monkeypatch):
    """Each kind of program refuses what it does not know."""
    wrong = (
        "uv run jukesep separat song.wav -o stems",
        "uv run jukesep separate song.wav",
        "uv run jukesep separate song.wav -o stems --refin none",
        "uv run jukesep separate song.wav -o stems --refine some",
        "uv run dvc reproduce",
        "uv run dvc repro --dri",
        "uv run dvc repro weight@*",
        "uv run dvc exp run -S stage1.stepz=3",
        "uv run dvc exp run -S stem=othr",
        "uv run dvc metrics show metrics/nothing",
        "uv run python -m benchmarks ours",
        "uv run python -m benchmarks.kill",
        "uv run python -m benchmarks.kills --kill 20 --often",
        "uv run python -m studies.ablations nothing",
        "uv run python -m stages.stage1 vocals",
        "uv run torchrun --nodes 2 --nprocs 2 -m stages.stage1 vocals pretrained",
        "uv run pytest tests/nothing",
        "JUKESEP_PROC=2 uv run dvc repro",
        "jukebox separate",
    )
    for line in wrong:
        with pytest.raises((Exception, SystemExit)):
            _takes(shlex.split(line), True, monkeypatch)


def _takes(words, whole, monkeypatch):
    """Fail if the program of a command does not know the command, an option or a name in it."""
    while words and "=" in words[0]:
        assert words.pop(0).split("=")[0] in VARIABLES
    if words[:2] == ["uv", "run"]:
        words = words[2:]
    program, *rest = words
    if program == "jukesep":
        _jukesep(rest, whole)
    elif program == "dvc":
        _dvc(rest, whole)
    elif program == "torchrun":
        options = torch.distributed.run.get_args_parser().parse_args(rest)
        assert options.module
        assert options.training_script in {"stages.weights", "stages.stage1", "stages.stage2"}
        _stage(options.training_script, options.training_script_args)
    elif program.endswith("/bin/python"):  # of an environment of the reader's
        assert (ROOT / words[1]).is_file()
    elif words[:2] == ["python", "-m"]:
        _module(words[2], words[3:], whole, monkeypatch)
    elif program == "pytest":
        named = [word for word in rest if word.startswith("tests")]
        assert all((ROOT / name).exists() for name in named)
    else:
        assert program in {"pip", "uv", "ruff", "mypy", "mkdocs", "git", "mkdir", "rm"}
        assert program == "uv" or shutil.which(program)


def _jukesep(words, whole):
    group = typer.main.get_command(cli.app)
    if not words or words[0].startswith("-"):
        assert set(words) <= {"--help", *(name for option in group.params for name in option.opts)}
        return
    name, *rest = words
    command = group.commands[name]
    if whole:
        command.make_context(name, rest)
    elif "-o" not in rest[-1:]:
        command.make_parser(typer.Context(command)).parse_args(args=rest)


def _stages():
    """Names of all stages of the pipeline, and the words of their commands."""
    chosen = yaml.safe_load(read("params.yaml"))
    for name, stage in stages().items():
        for key in chosen[stage["foreach"][2:-1]] if "foreach" in stage else ():
            yield f"{name}@{key}", stage["cmd"].replace("${key}", key).split()
        if "foreach" in stage:
            continue
        matrix = {key: chosen[values[2:-1]] for key, values in stage.get("matrix", {}).items()}
        for values in itertools.product(*matrix.values()):
            command = stage["cmd"]
            for key, value in zip(matrix, values, strict=True):
                command = command.replace(f"${{item.{key}}}", value)
            yield name + ("@" + "-".join(values)) * bool(values), command.split()


def _dvc(words, whole):
    if not whole and len(words) == 1:  # may be the name of a group
        with pytest.raises(SystemExit) as end:
            dvc_takes([*words, "--help"])
        assert end.value.code == 0
        return
    if words[-1:] == ["-S"]:  # named without a value
        words = words[:-1]
    options = dvc_takes(words)
    named = {name for name, _ in _stages()}
    if words[0] in ("repro", "commit", "pull") or words[:2] == ["exp", "run"]:
        for target in options.targets:
            assert fnmatch.filter(named, target) or (ROOT / target).exists(), target
    if words[:2] == ["metrics", "show"]:
        assert all((ROOT / target).is_dir() for target in options.targets)
    choices = []
    for override in getattr(options, "set_param", None) or ():
        key, value = override.split("=", 1)
        if PLACEHOLDER.fullmatch(value):
            assert (ROOT / "conf" / key).is_dir()
        else:  # a sweep by each of its values
            values = [value] if value.startswith("[") else value.split(",")
            choices.append([f"{key}={one}" for one in values])
    for chosen in itertools.product(*choices):
        composed = yaml.safe_load(params.compose(list(chosen), ROOT / "conf"))
        params.Params.model_validate(composed)


class _Taken(Exception):
    """The arguments have been parsed."""


def _module(module, words, whole, monkeypatch):
    if PLACEHOLDER.fullmatch(module.rpartition(".")[2]):
        return
    assert importlib.util.find_spec(module), module
    if module.startswith("stages."):
        _stage(module, words, whole)
    elif module.startswith(("benchmarks", "studies")):
        places = [word for word in words if PLACEHOLDER.fullmatch(word)]
        words = [word for word in words if word not in places]
        if module == "benchmarks":
            assert {word for word in words if word[0] != "-"} <= set(rows())
        if module == "studies.ablations":
            assert {word for word in words if word[0] != "-"} <= {
                one.name for one in ablations.ABLATIONS
            }
        parse = argparse.ArgumentParser.parse_args

        def parse_and_stop(parser, arguments):
            parse(parser, arguments)
            raise _Taken

        script = importlib.import_module(f"{module}.__main__" if module == "benchmarks" else module)
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
            with pytest.raises(_Taken):
                script.main(words)


def _stage(module, words, whole=True):
    commands = [command[2:] for _, command in _stages()]
    assert [module, *words] in commands or (not whole and module in {one[0] for one in commands})
