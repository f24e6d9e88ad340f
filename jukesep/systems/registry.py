"""Systems by name: `jukesep`, others' with published weights, or a function of the user's.

This module does not import torch until a system is loaded.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, invalidate_caches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..audio import Audio
from ..base import paths
from ..base.errors import UserError
from ..base.unchanged import code, digest, file_digest, marks
from ..songs.find import Found, training_songs
from ..songs.manifest import PARTS, STEMS
from .published.catalogue import PUBLISHED, refuse
from .system import NOT_STATED, Separate, System

if TYPE_CHECKING:
    from .equaliser import Equaliser

JUKESEP, EQUALISER = "jukesep", "static-equaliser"
NAMES = (JUKESEP, EQUALISER, *PUBLISHED)


@dataclass(frozen=True)
class Given:
    """What a system is loaded with."""

    weights: Path | None = None
    """File or folder of its weights."""
    device: str = "auto"
    refine: str = "none"
    """The refinement of `jukesep`'s stems, by its name."""
    data: Path | None = None
    """Folder of songs, for a system that is fitted to its training songs."""


@dataclass(frozen=True)
class Loaded:
    """A system that is ready, and what determines its output, as JSON can store it."""

    system: System
    made_of: Mapping[str, Any]


def load(name: str, given: Given) -> Loaded:
    """Load a system by its name, or `package.module:function`.

    The function takes (mixture (channels, samples) float32, sample rate in Hz) and returns
    {stem: (channels, samples)}; it may be a `System`. UserError for an unknown name, for weights
    that are missing or not needed, and for a system that was trained on the test songs.
    """
    refuse(name.replace("-", "_"))
    if given.refine != "none" and name != JUKESEP:
        raise UserError(f"--refine {given.refine}: only refines the stems of {JUKESEP}.")
    if ":" in name:
        return _own(name, given)
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"--system {name}: no such system.{hint} There are {', '.join(NAMES)}, and your own as "
            "package.module:function."
        )
    if name == JUKESEP:
        return _jukesep(given)
    if name == EQUALISER:
        return _equaliser(given)
    return _published(name, given)


def _jukesep(given: Given) -> Loaded:
    from ..kernels import devices
    from ..separation import models, separator

    folder = given.weights or paths.SEPARATOR
    stems = separator.available(folder)
    loaded = separator.load_separator(folder, refinement=given.refine)
    loaded.to(devices.choose(given.device))
    data, licences = set[str](), set[str]()
    if (folder / models.CARD).exists():
        cards = models.read_card(folder).stems.values()
        data, licences = {card.data for card in cards}, {card.licence for card in cards}
    refined = "" if given.refine == "none" else f", refined ({given.refine})"
    system = System(
        f"{JUKESEP}{refined}",
        loaded,
        trained_on="; ".join(sorted(data)) or NOT_STATED,
        licence="; ".join(sorted(licences)) or NOT_STATED,
        sample_rate=loaded.sample_rate,
        long_songs="in chunks with context: exactly as the whole song at once",
    )
    made_of = {"models": separator.digests(stems, folder), "refine": given.refine}
    return Loaded(system, made_of | _made_by("kernels", "model", "separation"))


def _equaliser(given: Given) -> Loaded:
    from . import equaliser

    if given.weights is not None:
        raise UserError(f"--weights {given.weights}: {EQUALISER} is fitted here; leave it out.")
    if given.data is None or not (songs := training_songs(given.data)):
        raise UserError(
            f"--system {EQUALISER}: is fitted to training songs, and {given.data} has none in "
            f"{given.data}/train."
        )
    fitted = fit_equaliser(songs)
    system = equaliser.system(fitted, f"{len(songs)} songs of {given.data}, split train")
    return Loaded(system, {"fitted to": songs_digest(songs)})


def fit_equaliser(songs: list[Found]) -> Equaliser:
    """The static equaliser of training songs, which have one sample rate."""
    from . import equaliser

    return equaliser.fit([found.song for found in songs], STEMS, one_rate(songs))


def one_rate(songs: list[Found]) -> int:
    """The sample rate in Hz of songs. UserError if they have several."""
    rates = {found.header.sample_rate: found for found in songs}
    if len(rates) > 1:
        (one, first), (other, second), *_ = rates.items()
        raise UserError(
            f"{second.song.folder}: {other} Hz, but {first.song.folder} has {one} Hz. Resample "
            "the training songs to one rate."
        )
    return next(iter(rates))


def songs_digest(songs: list[Found]) -> str:
    """A digest of the marks of training songs' files."""
    files = [found.song.file(part) for found in songs for part in PARTS]
    found = marks(file.resolve() for file in files)
    return digest(json.dumps(found, sort_keys=True).encode())


def _published(name: str, given: Given) -> Loaded:
    """Another separator with weights that the user names, or that `jukesep fetch` has left."""
    from ..kernels import devices

    weights = given.weights or Path("weights") / name
    if not weights.exists():
        raise UserError(
            f"{weights}: no such file or folder. Give the weights of {name} with --weights; "
            f"`jukesep fetch {name}` shows their licence, and downloads them once you accept it."
        )
    module = import_module(f".published.{name.replace('-', '_')}", __package__)
    system = module.load(weights, str(devices.choose(given.device)))
    return Loaded(system, {"weights": _content(weights)} | _made_by("systems/published"))


def _made_by(*folders: str) -> dict[str, Any]:
    """The code in folders of this package, and the libraries that run networks, with versions."""
    here, libraries = Path(__file__).parents[1], {}
    for name in ("demucs", "openunmix", "torch", "torchaudio"):
        with suppress(PackageNotFoundError):
            libraries[name] = version(name)
    files = (file for folder in folders for file in (here / folder).rglob("*.py"))
    return {"code": code(*files), "libraries": libraries}


def _own(name: str, given: Given) -> Loaded:
    """A function of the user's, from the current folder or an installed package."""
    place, _, attribute = name.partition(":")
    if not all(place.split(".")):
        raise UserError(f"--system {name}: give the function as module:function.")
    if given.weights is not None:
        raise UserError(f"--weights {given.weights}: {name} loads its own weights; leave it out.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    invalidate_caches()  # the file may have been written since the folder was last looked at
    try:
        module = import_module(place)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{place}.".startswith(f"{missing}."):
            raise _fault(error) from error
        raise UserError(
            f"--system {name}: no module {missing}. It is looked for in the current folder and "
            "among the installed packages."
        ) from error
    found = getattr(module, attribute, None)
    if not callable(found):
        there = sorted(n for n, one in vars(module).items() if callable(one) and n[0] != "_")
        raise UserError(
            f"--system {name}: {place} has no function {attribute}, only "
            f"{', '.join(there) or 'no functions'}."
        )
    system = found if isinstance(found, System) else System(name, _guarded(found))
    file = getattr(module, "__file__", None)
    return Loaded(system, {"function": name, "code": file_digest(file) if file else None})


def _guarded(function: Separate) -> Separate:
    """The same function; what it raises becomes a UserError that says where."""

    def separate(mixture: Audio, sample_rate: int) -> Mapping[str, Audio]:
        try:
            return function(mixture, sample_rate)
        except Exception as error:
            raise _fault(error) from error

    return separate


def _fault(error: Exception) -> UserError:
    """The error of a user's code, with its place."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    file, line = last.filename, last.lineno
    if isinstance(error, SyntaxError):
        file, line, error = error.filename or file, error.lineno, SyntaxError(error.msg)
    return UserError(f"{file}, line {line}: {type(error).__name__}: {error}")


def _content(weights: Path) -> str:
    """A digest of a file, or of all files in a folder."""
    files = [weights] if weights.is_file() else sorted(p for p in weights.rglob("*") if p.is_file())
    return digest(f"{file.name} {file_digest(file)}\n".encode() for file in files)
