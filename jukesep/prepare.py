"""The songs of an experiment: rendered or found, checked, brought to the model's sample rate."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from . import audio, musdb, pretrained
from .checks import Checked, Finding, Layout, check_root
from .errors import UserError
from .files import write_text
from .params import Params
from .progress import bar
from .songs import MIXTURE, SPLITS, STEMS, Manifest, Song

PARTS = (MIXTURE, *STEMS)
SHOWN = 20  # warnings that are printed; checks.json has all


def prepare(params: Params, folder: Path) -> Manifest:
    """Write manifest.json, checks.json and the audio that the manifest names to `folder`.

    Songs at the model's rate stay where they are. UserError, before any work, if the pretrained
    weights could not be had later on; and one with every fault of the songs.
    """
    pretrained.check(params.weights, params.inits)
    shutil.rmtree(folder, ignore_errors=True)  # songs of an earlier run are not this run's
    root, layout, groups = _source(params, folder)
    checked, warnings = check_root(root, layout)
    songs = [
        Song(
            name=song.name,
            split=song.split,
            group=groups.get((song.split, song.name), song.split),
            folder=song.folder,
            samples=song.headers[MIXTURE].samples,
        )
        for song in checked
    ]
    songs = _with_validation(params, songs)
    if checked[0].headers[MIXTURE].sample_rate != params.model.sample_rate:
        songs = _resampled(songs, folder / "songs", params.model.sample_rate)
    if params.data.train_on_validation:
        songs += [replace(song, split="train") for song in songs if song.split == "valid"]
    if not any(song.split == "pretrain" for song in songs):
        # Only the band has a corpus of its own to pretrain on.
        songs += [replace(song, split="pretrain") for song in songs if song.split == "train"]
    songs.sort(key=lambda song: (SPLITS.index(song.split), song.name))
    manifest = Manifest(params.model.sample_rate, tuple(songs))
    _save_checks(folder / "checks.json", checked, warnings)
    manifest.save(folder / "manifest.json")
    _summary(manifest, warnings)
    return manifest


def _source(params: Params, folder: Path) -> tuple[Path, Layout, dict[tuple[str, str], str]]:
    """Where the songs lie, what has to be there, and the groups of songs that have one."""
    shortest = longest_segment(params) / params.model.sample_rate
    both = dict.fromkeys(("train", "test"), PARTS)
    data = params.data
    if data.source == "band":
        root = folder / "band"
        groups = _render(params, root)
        return root, Layout({**both, "pretrain": (MIXTURE,)}, shortest=shortest), groups
    assert data.root is not None
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such folder. Give the folder of the songs.")
    if data.source == "musdb18":
        musdb.decode(root, folder / "musdb18", params.model.sample_rate)
        return folder / "musdb18", Layout(both, shortest=shortest), {}
    if data.source == "musdb18hq":
        musdb.fetch(root, data.accept_licence)
        return root, musdb.layout(shortest), {}
    optional = frozenset(["valid"])
    return root, Layout({**both, "valid": PARTS}, optional=optional, shortest=shortest), {}


def longest_segment(params: Params) -> int:
    """Samples of the longest segment that a training of this experiment cuts."""
    recipes = [params.stage1, params.stage2]
    if params.weights.source == "pretrain" and "pretrained" in params.inits:
        recipes.append(params.pretrain)
    return max(recipe.segment for recipe in recipes)


def _render(params: Params, root: Path) -> dict[tuple[str, str], str]:
    """The band's songs below `root`; the group of each (split, name)."""
    from .band import render_corpus  # scipy.signal takes seconds that other data need not wait

    band = params.band
    counts = {"train": band.train + band.valid, "test": band.test, "pretrain": band.pretrain}
    rendered = render_corpus(root, counts=counts, seconds=band.seconds, seed=band.seed)
    return {(song["split"], song["name"]): song["group"] for song in rendered}


def _with_validation(params: Params, songs: list[Song]) -> list[Song]:
    """The songs with validation songs set apart from the training songs.

    The band: the last `band.valid`. Other data: the folder valid/ if there is one, else the songs
    on musdb's list, else the last `data.valid_songs`.
    """
    if any(song.split == "valid" for song in songs):
        return songs
    names = [song.name for song in songs if song.split == "train"]
    chosen: Collection[str]
    if params.data.source == "band":
        chosen = names[-params.band.valid :]
    else:
        chosen = musdb.validation_songs() & set(names) or names[-params.data.valid_songs :]
    if len(chosen) >= len(names):
        raise UserError(
            f"train/ has {len(names)} song(s), and {len(chosen)} would be set apart for "
            "validation: none are left to train on. Add songs, or lower data.valid_songs."
        )
    return [
        replace(song, split="valid") if song.split == "train" and song.name in chosen else song
        for song in songs
    ]


def _resampled(songs: list[Song], folder: Path, sample_rate: int) -> list[Song]:
    """Copies of the songs at another rate, as float: the mixture stays the sum of the stems."""

    def copy(song: Song) -> Song:
        target = folder / song.split / song.name
        for part in (MIXTURE,) if song.split == "pretrain" else PARTS:
            source = song.file(part)
            resampled = audio.resample(
                audio.read(source), audio.info(source).sample_rate, sample_rate
            )
            audio.write(target / f"{part}.wav", resampled, sample_rate, "FLOAT")
        return replace(song, folder=target, samples=resampled.shape[1])

    # Threads are enough: reading, resampling and writing all leave Python's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(copy, songs)
        return list(bar(done, total=len(songs), desc=f"prepare: to {sample_rate} Hz", unit="song"))


def _save_checks(path: Path, songs: list[Checked], warnings: list[Finding]) -> None:
    """Write what was found. The digests make a changed song a changed input of the trainings."""
    content = {
        "warnings": [str(warning) for warning in warnings],
        "samples": {song.file(): song.digests for song in songs},
    }
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _summary(manifest: Manifest, warnings: list[Finding]) -> None:
    for warning in warnings[:SHOWN]:
        print(f"warning: {warning}", file=sys.stderr)
    if len(warnings) > SHOWN:
        print(f"warning: {len(warnings) - SHOWN} more, in checks.json", file=sys.stderr)
    counts = [f"{sum(song.split == split for song in manifest.songs)} {split}" for split in SPLITS]
    unique = {song.folder: song.samples for song in manifest.songs}
    hours = sum(unique.values()) / manifest.sample_rate / 3600
    print(f"prepare: {', '.join(counts)} songs, {hours:.2f} h, {manifest.sample_rate} Hz")
