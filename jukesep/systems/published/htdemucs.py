"""Hybrid Transformer Demucs with published weights: `htdemucs` of the package demucs.

Rouard, Massa and Défossez, Hybrid Transformers for Music Source Separation, 2023. A song is
separated as by `demucs.separate`, but without its random shift, so that the same song gives the
same stems: chunks of 7.8 s that overlap by a quarter with triangular weights, after the mean and
the deviation of the mono mixture have been removed.
"""

from __future__ import annotations

import inspect
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from ...audio import Audio
from ...base.errors import UserError
from ..system import System
from .catalogue import about
from .hdemucs import level
from .weights import Weights, fill, only, read

CLASS = "demucs.htdemucs.HTDemucs"
OVERLAP = 0.25


def load(weights: Path, device: str = "cpu") -> System:
    """Load a safetensors file as demucs 4.1 publishes them: its metadata holds the arguments.

    UserError if it is not one of HTDemucs.
    """
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    state = read(only(weights))
    args, kwargs = _arguments(state)
    known = inspect.signature(HTDemucs).parameters  # the package drops others as well
    try:
        with torch.device("meta"):
            model = HTDemucs(*args, **{name: kwargs[name] for name in kwargs.keys() & known})
        if not (
            model.samplerate > 0 and model.segment > 0 and all(map(str.isidentifier, model.sources))
        ):
            raise ValueError("its rate, segment or sources are none")
    except Exception as error:  # the arguments are the file's, and can be anything
        raise UserError(f"{state.path}: its arguments make no {CLASS} ({error}).") from error
    fill(model, state)
    model.to(device).eval()

    def separate(mixture: Audio, sample_rate: int) -> dict[str, Audio]:
        song = torch.from_numpy(mixture).to(device)
        mean, deviation = level(song)
        given = ((song - mean) / deviation)[None]
        stems = apply_model(model, given, shifts=0, split=True, overlap=OVERLAP)[0]
        found = (stems * deviation + mean).cpu().numpy()
        return dict(zip(model.sources, found, strict=True))

    trained_on, licence = about("htdemucs", [state.sha256], [state.path.name])
    return System(
        name="htdemucs",
        separate=separate,
        trained_on=trained_on,
        licence=licence,
        sample_rate=model.samplerate,
        channels=model.audio_channels,
        long_songs=f"chunks of {float(model.segment):g} s that overlap by a quarter",
    )


def _arguments(state: Weights) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of HTDemucs, from the metadata that demucs 4.1 writes (`demucs.hf`)."""
    found = state.metadata
    if found.get("klass") != CLASS:
        raise UserError(
            f"{state.path}: is of {found.get('klass', 'no class that it names')}, where {CLASS} is "
            "expected. A .th file of demucs can be converted: "
            "python -m jukesep.systems.published.convert --help"
        )
    try:
        args, kwargs = (
            json.loads(found[name], object_hook=_fraction) for name in ("args", "kwargs")
        )
        return list(args), dict(kwargs)
    except (KeyError, ValueError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise UserError(f"{state.path}: its arguments cannot be read ({error!r}).") from error


def _fraction(item: dict[str, Any]) -> Any:
    if item.get("_type") == "fraction":
        return Fraction(item["numerator"], item["denominator"])
    return item
