"""Find the file of pretrained weights: the user's own, or Jukebox's, which is downloaded.

This module checks only the file's sha256; jukebox.py loads it. This module does not import torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

from platformdirs import user_cache_path

from ..base.download import reason
from ..base.errors import UserError
from ..base.params import Weights
from ..base.unchanged import file_digest

CACHE = "JUKESEP_CACHE"
"""Environment variable with another folder for downloaded files."""
PATH = "jukebox/models/5b/vqvae.pth.tar"
"""The VQ-VAE of Jukebox's models "5b": its path at OpenAI's addresses and in the cache."""
URLS = (
    f"https://openaipublic.azureedge.net/{PATH}",
    f"https://openaipublic.blob.core.windows.net/{PATH}",
)
SHA256 = "69745413a48e887f8a3fe91b972a6f7f434021a1ce911a99187b331eb48c059a"
TITLE = "Jukebox's weights"
LICENCE = (
    "Jukebox's code, weights and what is made with them (fine-tuned models, separated stems): "
    "non-commercial use only, by OpenAI's terms (github.com/openai/jukebox, LICENSE)."
)


def check(weights: Weights, inits: Collection[str]) -> None:
    """UserError if an experiment's weights are not available; call this before hours of work.

    Downloads Jukebox's file (7.7 MB) if needed, so that later stages find it in the cache.
    """
    if "pretrained" in inits and weights.source != "pretrain":
        find(weights)


def find(weights: Weights) -> Path:
    """The path of the file for weights.source `file` or `jukebox`, with its sha256 checked.

    Raises UserError if the file is missing, cannot be downloaded, or has another sha256.
    """
    return _fetched(weights) if weights.source == "jukebox" else _given(weights)


def cached() -> Path:
    """Path of Jukebox's file in the user's cache, shared by all experiments.

    UserError if neither JUKESEP_CACHE nor a home folder says where that is.
    """
    folder = os.environ.get(CACHE)
    try:
        return (Path(folder).expanduser() if folder else user_cache_path("jukesep")) / PATH
    except RuntimeError:
        raise UserError(
            f"{TITLE}: this user has no home folder to keep them in. Set {CACHE} to a writable "
            "folder."
        ) from None


def _fetched(weights: Weights) -> Path:
    import pooch
    import requests

    print(LICENCE, file=sys.stderr)
    path, sha256 = cached().absolute(), (weights.sha256 or SHA256).lower()
    faults, found = [f"{TITLE}: cannot be fetched."], dict[str, str]()

    def fetch(url: str, temporary: str, caller: object) -> None:
        pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16)(url, temporary, caller)
        found[url] = file_digest(Path(temporary))

    for url in URLS:
        try:
            pooch.retrieve(url, f"sha256:{sha256}", path.name, path.parent, downloader=fetch)
            return path
        except (requests.RequestException, ValueError) as error:
            wrong = url in found and f"sha256 is {found[url]}, but should be {sha256}"
            faults.append(f"  {url}: {wrong or reason(error)}")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}.") from error
    if found:
        faults.append(
            "To accept the file all the same, if you trust where it comes from: "
            f"weights.sha256={next(iter(found.values()))}"
        )
    raise UserError(
        "\n".join(faults)
        + f"\nWithout a network: fetch {URLS[0]} elsewhere and save it as {path}, "
        "or anywhere, and give weights=file weights.file=/path/to/vqvae.pth.tar."
    )


def _given(weights: Weights) -> Path:
    assert weights.file is not None
    path = Path(weights.file)
    if not path.is_file():
        raise UserError(f"weights.file: {path}: no such file.")
    if weights.sha256:
        try:
            found = file_digest(path)
        except OSError as error:
            raise UserError(f"weights.file: {path}: {error.strerror or error}.") from error
        if found != weights.sha256.lower():
            raise UserError(
                f"weights.file: {path}: sha256 is {found}, but weights.sha256 asks for "
                f"{weights.sha256}. To accept the file, if you trust where it comes from: "
                f"weights.sha256={found}"
            )
    return path
