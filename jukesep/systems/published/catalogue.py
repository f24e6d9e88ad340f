"""Weights that others have published: where they are from, what is known of them, what is refused.

Nothing is downloaded unless `fetch` is told that the licence is accepted. This module does not
import torch.

Sources: the addresses are those in the packages torchaudio 2.11.0 (`pipelines`), openunmix 1.3.0
and demucs 4.1.0 (`hf`, `remote/files.txt`), which say what the weights were trained on. The first
eight hex digits of sha256 are part of the file names of Open-Unmix and Demucs. The further digits,
and the sha256 of torchaudio's file, are those that several public projects pin.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...base.download import download
from ...base.errors import UserError
from ...base.unchanged import file_digest
from ..system import NOT_STATED

NAMED = re.compile(r"-([0-9a-f]{8})\.(pth|th|pt|safetensors)$")
TRAINING_SONGS = "the training songs of MUSDB18-HQ"


@dataclass(frozen=True)
class File:
    """A file as it is published."""

    name: str
    url: str
    sha256: str | None
    """None: not known."""
    megabytes: int


@dataclass(frozen=True)
class Published:
    """Weights that `jukesep fetch` downloads, and a module beside this one loads."""

    title: str
    files: tuple[File, ...]
    trained_on: str
    licence: str


_ZENODO = "https://zenodo.org/records/3370489/files/"
_UMXHQ = {
    "vocals-b62c91ce.pth": "b62c91cedbc7a066f1778ead5b5cecb377aa3a46a31af1cce7c5c8769339d083",
    "drums-9619578f.pth": "9619578f885c54737cb0234f9f9a4a679ee4f31438fd77fd1dbe02bb16c2da0a",
    "bass-8d85a5bd.pth": "8d85a5bd3f996a8867fca0e8442e077e5a3f5ec747a6112742452a8f347b39c8",
    "other-b52fbbf7.pth": "b52fbbf76479e752bd72e02304c602ac7802aa5bfbfb9cd12054b2695d5093ab",
}
PUBLISHED = {
    "open-unmix": Published(
        title="umxhq",
        files=tuple(File(name, _ZENODO + name, sum_, 36) for name, sum_ in _UMXHQ.items()),
        trained_on=TRAINING_SONGS,
        licence="MIT (zenodo.org/records/3370489); MUSDB18-HQ itself is for research only",
    ),
    "hdemucs": Published(
        title="HDEMUCS_HIGH_MUSDB",
        files=(
            File(
                "hdemucs_high_musdbhq_only.pt",
                "https://download.pytorch.org/torchaudio/models/hdemucs_high_musdbhq_only.pt",
                None,
                335,
            ),
        ),
        trained_on=TRAINING_SONGS,
        licence="none stated: treat these weights as for research only",
    ),
    "htdemucs": Published(
        title="htdemucs",
        files=(
            File(
                "955717e8.safetensors",
                "https://huggingface.co/adefossez/HTDemucs/resolve/"
                "cbc8a9b1a87023b7fd74e7b3412e6321c0eab003/955717e8.safetensors",
                "d9fa14133cfcc034a6758923bb3a8ca9f8dfd0b582134643bbf83f72c17576dd",
                84,
            ),
        ),
        trained_on=f"{TRAINING_SONGS} and 800 more songs",
        licence="only for scientific purposes, by their author "
        "(github.com/facebookresearch/demucs/issues/327)",
    ),
}
# The same weights in another file: sha256 -> a system above.
ALSO = {"8726e21a993978c7ba086d3872e7608d7d5bfca646ca4aca459ffda844faa8b4": "htdemucs"}

_WITH_TEST_SONGS = {
    # First digits of the sha256, and what file names contain. Demucs calls the four models of a
    # set by the eight digits before its files' sums.
    "HDEMUCS_HIGH_MUSDB_PLUS": (
        ("a004b2790d73ffeaa535db458a1a79b539dfdbafbccc31f275d07e632ebd7816",),
        ("hdemucs_high_trained", "hdemucs_high_musdb_plus"),
    ),
    "mdx_extra_q": (
        ("4a16d450", "e5a9386e", "a89dd0ee", "a905dd85"),
        ("mdx_extra_q", "83fc094f", "464b36d7", "14fc6a69", "7fd6ef75"),
    ),
    "mdx_extra": (
        ("c1b80bdd", "ae9d2452", "db83574e", "61801ae1"),
        ("mdx_extra", "e51eebcc", "a1d90b5c", "5d2d6c55", "cfa93e08"),
    ),
}


def checked(path: Path) -> str:
    """The sha256 of a file of weights.

    UserError if the file cannot be read, if its name belongs to another sha256, or if the weights
    have been trained on MUSDB18's test songs.
    """
    refuse(path.name)
    try:
        sha256 = file_digest(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}.") from error
    refuse(path.name, sha256)
    published = [f.sha256 for one in PUBLISHED.values() for f in one.files if f.name == path.name]
    named = NAMED.search(path.name)
    expected = next(filter(None, published), named and named[1])
    if expected and not sha256.startswith(expected):
        raise UserError(
            f"{path}: sha256 is {sha256}, but a file of this name has {expected}"
            f"{'' if len(expected) == 64 else '...'}. Download it again; rename it if it is a file "
            "of your own."
        )
    return sha256


def refused(name: str, sha256: str = "") -> str | None:
    """Why weights of this name or sha256 are not scored: trained on test songs. None if they are.

    A name may have further words, and dashes for underscores.
    """
    words = name.lower().replace("-", "_")
    for title, (sums, names) in _WITH_TEST_SONGS.items():
        if any(word in words for word in names) or sha256.startswith(sums):
            return (
                f"{title} was trained on the test songs of MUSDB18 too, so that its scores on them "
                "say nothing. Use htdemucs, or hdemucs with HDEMUCS_HIGH_MUSDB."
            )
    return None


def refuse(name: str, sha256: str = "") -> None:
    """UserError if weights of this name or sha256 are not scored (`refused`)."""
    if why := refused(name, sha256):
        raise UserError(f"{name}: {why}")


def about(name: str, sums: Sequence[str], files: Sequence[str]) -> tuple[str, str]:
    """What a system was trained on, and the licence of its weights, if the files are published.

    `sums` are the sha256 of the files, `files` their names. The name decides where no sha256 is
    known.
    """
    one = PUBLISHED[name]
    pinned = {file.sha256 for file in one.files}
    named = {file.name for file in one.files if file.sha256 is None}
    if all(s in pinned or ALSO.get(s) == name for s in sums) or set(files) <= named:
        return one.trained_on, one.licence
    return NOT_STATED, NOT_STATED


def describe(name: str) -> str:
    """Source, licence and size of published weights, as text for a terminal."""
    one = _known(name)
    lines = [
        f"{one.title}: {sum(file.megabytes for file in one.files)} MB",
        f"  trained on  {one.trained_on}",
        f"  licence     {one.licence}",
    ]
    for file in one.files:
        lines += [f"  from        {file.url}", f"  sha256      {file.sha256 or 'not known'}"]
    return "\n".join(lines)


def fetch(name: str, folder: Path, accepted: bool) -> list[Path]:
    """Download published weights into a folder; return the paths of the files.

    Prints source, licence and size first. A file that is there is checked, and not downloaded
    again. UserError if `accepted` is false, which says that the licence is accepted; for an unknown
    name; or if a file cannot be downloaded or has another sha256.
    """
    print(describe(name), file=sys.stderr)
    if not accepted:
        raise UserError(
            f"{name}: nothing was downloaded. Read the licence, and accept it with "
            "--accept-licence."
        )
    for file in (one := _known(name)).files:
        path = folder / file.name
        if not path.exists():
            download(file.url, path, sha256=file.sha256, title=file.name)
        sha256 = checked(path)
        if file.sha256 is None:
            print(f"{path}: sha256 is {sha256}, and cannot be compared.", file=sys.stderr)
    return [folder / file.name for file in one.files]


def _known(name: str) -> Published:
    if name not in PUBLISHED:
        refuse(name)
        raise UserError(f"{name!r}: no such weights. Known: {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]
