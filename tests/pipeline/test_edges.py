"""Every parameter at each edge of what it allows: it trains, or is refused before anything runs.

The edges follow from the schema, so that a new parameter is covered as soon as it exists.
"""

import csv
import math
import types
import typing
from pathlib import Path

import annotated_types
import pytest
import torch
import yaml
from pydantic import BaseModel
from settings import flat
from tiny import SMALL, prepare_songs

from jukesep.base import params, paths
from jukesep.base.errors import UserError
from jukesep.model import jukebox
from jukesep.pipeline import evaluate
from jukesep.pipeline import train as experiment
from jukesep.separation import models

ROOT = Path(__file__).parents[2]
SETTINGS = [
    *SMALL, "pretrain.segment=2048", "pretrain.steps=2", "stage2.checkpoints=[2]",
    "model.latent_dim=4",
]  # fmt: skip
STAGES = {
    "pretrain": ("weights",),
    "stage1": ("stage1",),
    "stage1_steps": ("stage1",),
    "stage2": ("stage2",),
    "separation": ("evaluate",),
}
ALL = ("weights", "stage1", "stage2")
# Texts and lists of names, and what the songs are made from: no training reads them.
# tests/peers has the edges of the peers' networks; their recipes have the fields of `pretrain`.
APART = ("scale", "stem", "stems", "inits", "data", "band", "weights", "evaluate", "peers")
# What has to change with a parameter.
WITH = {
    "stage2.steps": {"stage2.checkpoints": [1]},
    "stage2.checkpoints": {"stage2.steps": 1},
}
# The message for an edge that other parameters do not allow.
REFUSED = {
    ("pretrain.segment", 1): "at least 2048",
    ("stage1.segment", 1): "at least 2048",
    ("stage2.segment", 1): "at least 2048",
    ("precision", "tf32"): "precision=tf32 is for NVIDIA GPUs",
}
if not torch.cuda.is_available():
    REFUSED["device", "cuda"] = "device=cuda is not available here"
if not torch.backends.mps.is_available():
    REFUSED["device", "mps"] = "device=mps is not available here"


def _edges(kind, bounds=()):
    """The edges of a type: the bounds of a number, and each choice of a set."""
    origin, within = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        bounds = [*bounds, *within[1].metadata]
        yield from _edges(within[0], bounds)
    elif origin is typing.Literal:
        yield from within
    elif origin in (typing.Union, types.UnionType):
        for one in within:
            yield from [None] if one is type(None) else _edges(one, bounds)
    elif origin is tuple:
        yield from ([edge] for edge in _edges(within[0]))
    elif kind is bool:
        yield from (False, True)
    elif kind in (int, float):
        for bound in bounds:
            match bound:
                case annotated_types.Ge(edge) | annotated_types.Le(edge):
                    yield kind(edge)
                case annotated_types.Gt(edge):
                    yield math.nextafter(edge, math.inf)
                case annotated_types.Lt(edge):
                    yield math.nextafter(edge, -math.inf)


def _all_edges(section=params.Params, prefix=""):
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _all_edges(field.annotation, f"{prefix}{name}.")
        else:
            for edge in _edges(field.annotation, field.metadata):
                yield prefix + name, edge


EDGES = [
    (name, edge)
    for name, edge in _all_edges()
    if name.split(".")[0] not in APART
    # The largest models do not fit into the memory of a test.
    and not (name.startswith("model.") and edge not in (1, [1]))
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project, entered, with each stage trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("edges"))
        patch.delenv(paths.VARIABLE, raising=False)
        # The digests of all code take longer than these trainings.
        patch.setattr(experiment.identity, "identity", _identity)
        prepare_songs(
            Path(),
            lambda split, stem: 0.1,
            dict.fromkeys(("train", "valid", "test", "pretrain"), 1),
        )
        _run(_params(), ALL)
        yield


def _identity(stage, item, all_params, libraries=(), **more):
    return {"stage": {"name": stage, **item}, "parameters": all_params, "runs on": more}


def _params(changes=()):
    content = yaml.safe_load(params.compose(SETTINGS, ROOT / "conf"))
    for name, value in dict(changes).items():
        *sections, last = name.split(".")
        within = content
        for section in sections:
            within = within[section]
        within[last] = value
    return params._check(content, "params.yaml")


def _run(p, stages):
    """Run stages, and check that what they write is finite."""
    for stage in stages:
        if stage == "evaluate":
            evaluate.evaluate(p, "drums", "pretrained")
            with paths.scores("drums", "pretrained").open() as file:
                rows = list(csv.DictReader(file))
            assert all(math.isfinite(float(row["value"])) for row in rows if row["metric"] == "sdr")
            continue
        if stage == "weights":
            experiment.weights(p, "pretrained")
            folder, steps = paths.weights("pretrained"), p.pretrain.steps
            jukebox.load_jukebox(paths.weights_file("pretrained"))  # checks that it is finite
        elif stage == "stage1":
            experiment.stage1(p, "drums", "pretrained")
            folder, steps = paths.run("stage1", "drums", "pretrained"), p.stage1_of("drums").steps
            jukebox.load_jukebox(p.stage1_checkpoint("drums", "pretrained"))
        else:
            experiment.stage2(p, "drums", "pretrained")
            folder, steps = paths.run("stage2", "drums", "pretrained"), p.stage2.steps
            jukebox.load_encoder(folder / f"checkpoints/{steps}.pt")
        with (folder / "log.csv").open() as file:
            log = list(csv.DictReader(file))
        assert log[-1]["step"] == str(steps)
        assert all(math.isfinite(float(value)) for row in log for value in row.values() if value)


def test_every_number_has_edges():
    named = {name for name, _ in _all_edges()}
    for name, value in flat(_params().model_dump()):
        assert name in named or isinstance(value, str | None) or name == "band.soundfonts", name
    assert {"losses.linf", "codebook.decay", "stage1.warmup", "stage2.checkpoints"} <= named
    assert [edge for name, edge in EDGES if name == "codebook.decay"] == [0, 1]
    assert len(EDGES) > 80


@pytest.mark.parametrize(("name", "edge"), EDGES, ids=lambda value: str(value))
def test_each_edge_trains_or_is_refused(trained, name, edge):
    section = name.split(".")[0] if "." in name else ""
    stages = STAGES.get(section, ALL if section else ("stage2",))
    changes = {name: edge, **WITH.get(name, {})}
    said = REFUSED.get((name, edge if not isinstance(edge, list) else None))
    if said:
        with pytest.raises(UserError, match=said):
            _run(_params(changes), stages)
        return
    if name in ("stage1.steps", "stage1_steps.drums"):
        stages = ("stage1", "stage2")
    _run(_params(changes), stages)


@pytest.mark.parametrize(
    "changes",
    [
        {"codebook.decay": 0.0, "codebook.revival_threshold": 0.0},
        {"losses.linf": 0.0, "losses.multispectral": 0.0, "losses.commit": 0.0},
        {"losses.linf": 0.0, "stage2.loss": "mse_linf"},
        # One latent a segment, and fewer latents than codes.
        {"model.downs": [11], "pretrain.batch": 1, "stage1.batch": 1, "stage2.batch": 1},
        {"stage1.warmup": 5, "stage1.log_every": 9, "stage1.valid_every": 9},
        {"stage2.valid_segments": 1, "stage2.batch": 7},
    ],
    ids=lambda changes: ", ".join(changes),
)
def test_edges_together_train(trained, changes):
    _run(_params(changes), ALL)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stage1.learning_rate": math.inf}, "stage1.learning_rate: .* finite number"),
        ({"losses.linf": math.nan}, "losses.linf: "),
        ({"save_minutes": math.inf}, "save_minutes: .* finite number"),
        ({"model.depth": 21}, "dilation_growth=3 at depth=21 .* lower one of the two"),
        ({"model.depth": 65, "model.dilation_growth": 1}, "model.depth: .* 64"),
        ({"model.downs": [1] * 9}, "model.downs: .* 8 items"),
        ({"model.downs": []}, "model.downs: .* at least 1 item"),
        ({"model.downs": [12]}, r"segment is 2048: it must be a multiple of the hop \(4096\)"),
    ],
)
def test_what_no_training_or_file_can_hold_is_refused(changes, said):
    with pytest.raises(UserError, match=said):
        _params(changes)


def test_the_largest_sizes_of_a_model_fit_into_its_card():
    fields = {**models.Layers.model_fields, "sample_rate": models.Card.model_fields["sample_rate"]}
    ours = params.Model.model_fields
    for name in ours:
        assert ours[name].metadata == fields[name].metadata, name
