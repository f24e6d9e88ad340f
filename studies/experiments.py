"""DVC experiments run by name, and the scores that they and the committed run have.

An experiment counts as done while its code and parameters are today's. DVC's run-cache keeps every
stage that ever ran, so that a second run runs only what has changed.
"""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import yaml

from jukesep.base import params, paths
from jukesep.base.errors import UserError
from jukesep.base.git import git
from jukesep.peers.common import registry

Scores = dict[str, float]
"""drums, bass, other, vocals and total in dB; for trained models also their step."""

PAGES = Path(__file__).with_name("pages")
"""Templates of the studies' pages."""

# What an experiment would not see if it were not committed.
CODE = ("jukesep", "stages", "conf", "dvc.yaml", "params.yaml")
# What decides the scores of an experiment.
DECIDING = (
    "conf",
    *(f"jukesep/{name}" for name in ("audio", "kernels", "model", "peers", "pipeline", "scoring")),
    *(f"jukesep/{name}" for name in ("separation", "songs", "systems", "training")),
    "jukesep/base/seeds.py",
)
ABLATIONS = Path("conf/ablation")
SONGS = {"seen": "sdr", "held_out": "held_out"}  # folders of metrics/
BASELINES = {"seen": "baselines", "held_out": "held_out/baselines"}


def scores(songs: str, system: str, experiment: str | None = None) -> Scores:
    """The SDR of a system on the "seen" or "held_out" test songs, of the workspace by default.

    A system is an init and a checkpoint, as pretrained_late, a peer, or a baseline, as
    scaled_mixture.
    """
    for folder in (SONGS[songs], BASELINES[songs]):
        path = paths.METRICS / folder / f"{system}.json"
        if experiment is None:
            text = path.read_text(encoding="utf-8") if path.exists() else None
        else:
            text = git("show", f"{_revision(experiment)}:{path.as_posix()}")
        if text is not None:
            break
    if text is None:
        where = "the workspace" if experiment is None else f"the experiment {experiment}"
        raise UserError(f"{path} is not in {where}. Run `dvc repro`.")
    return json.loads(text)


def run(name: str, overrides: Sequence[str]) -> None:
    """Run an experiment that is not done, in a folder of its own: the workspace stays as it is.

    UserError if the working tree has changes that the experiment would not see, or if it fails.
    """
    if done(name, overrides):
        return
    require_commit()
    if _revision(name):
        subprocess.run(["dvc", "exp", "remove", name], check=True)
    settings = [word for override in overrides for word in ("-S", override)]
    command = ["dvc", "exp", "run", "--temp", "--name", name, *settings]
    if subprocess.run(command).returncode:
        raise UserError(f"`{' '.join(command)}` failed; its output is above.")


def output(name: str, path: Path, to: Path) -> Path:
    """Copy an output of an experiment that is done from DVC's cache to `to`; return `to`."""
    command = ["dvc", "get", ".", path.as_posix(), "--rev", str(_revision(name)), "-o", str(to)]
    if subprocess.run(command).returncode:
        raise UserError(f"`{' '.join(command)}` failed; its output is above.")
    return to


def require_commit() -> None:
    """UserError if the working tree has changes that decide scores and are not committed."""
    if git("status", "--porcelain", "--", *CODE):
        raise UserError("The code or the parameters have uncommitted changes. Commit them first.")


def done(name: str, overrides: Sequence[str]) -> bool:
    """Whether the experiment is there, of today's parameters, and of the code of dvc.lock."""
    revision = _revision(name)
    if revision is None:
        return False
    composed = params.compose(list(overrides)).strip()
    if git("show", f"{revision}:{paths.PARAMS}") != composed:
        return False
    committed = _code(paths.LOCK.read_text(encoding="utf-8"))
    ran = _code(git("show", f"{revision}:{paths.LOCK}") or "stages: {}")
    return all(committed.get(stage) == code for stage, code in ran.items())


def unchanged(since: str, peer: str | None = None) -> bool:
    """Whether what decides the scores of our models, or of a peer, is as it was in a commit.

    That is code and parameters, without those of other peers and of ablations, and without
    comments, docstrings and line breaks.
    """
    if git("rev-parse", "--verify", "--quiet", f"{since}^{{commit}}") is None:
        return False
    names = git("diff", "--name-only", since, "--", *DECIDING) or ""
    changed = [
        path
        for path in map(Path, names.splitlines())
        if _peer(path) in (None, peer) and not path.is_relative_to(ABLATIONS)
    ]
    return all(
        path.exists()
        and _meaning(path, path.read_text(encoding="utf-8"))
        == _meaning(path, git("show", f"{since}:{path.as_posix()}") or "")
        for path in changed
    )


def _meaning(path: Path, content: str) -> object:
    """What a file says to the program that reads it, to be compared."""
    if path.suffix == ".yaml":
        return yaml.safe_load(content)
    if path.suffix != ".py":
        return content
    tree = ast.parse(content)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):  # a text alone, such as a docstring, does nothing
            node.body = [  # type: ignore[attr-defined]
                line
                for line in body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
    return ast.dump(tree)


def _peer(path: Path) -> str | None:
    """The peer that a file belongs to; None if it decides more than one peer's scores."""
    *folders, name = path.parts
    if folders in (["jukesep", "peers"], ["conf", "peers"]):
        name = Path(name).stem
    elif folders[:2] == ["conf", "peer"]:
        name = folders[2]
    return name if name in registry.NAMES else None


def commit() -> str:
    """The commit whose code runs."""
    return git("rev-parse", "--short", "HEAD") or "unknown"


def _code(lock: str) -> dict[str, dict[str, str]]:
    """Stage -> path -> md5 of the code that a dvc.lock names."""
    return {
        name: {
            dep["path"]: dep["md5"]
            for dep in stage["deps"]
            if Path(dep["path"]).parts[0] in ("jukesep", "stages")
        }
        for name, stage in yaml.safe_load(lock)["stages"].items()
    }


def _revision(name: str) -> str | None:
    """The reference of an experiment, if it is there."""
    names = git("for-each-ref", "refs/exps", "--format=%(refname)") or ""
    for line in names.splitlines():
        if line.endswith(f"/{name}") and "/exec/" not in line:
            return line
    return None
