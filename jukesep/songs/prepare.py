"""Prepare an experiment's songs: render or find them, check and resample them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Collection, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import audio
from ..base import paths
from ..base.errors import UserError
from ..base.files import write_json
from ..base.parallel import at_once
from ..base.params import Params
from ..base.progress import bar
from ..base.unchanged import Known, code
from . import musdb
from .checks import Checked, Finding, Layout, check_root
from .manifest import MIXTURE, PARTS, SPLITS, STEMS, Manifest, Song

MADE = ("band", "musdb18", "songs")  # folders of generated songs in the cache
SHOWN = 20  # warnings printed; checks.json has all
RESAMPLING = 30  # bytes of memory for each sample of a channel
RENDERING = 500e6  # bytes of memory to render a song of the band, with the process


def prepare(params: Params, folder: Path) -> Manifest:
    """Write manifest.json, checks.json and the audio that the manifest names to `folder`.

    Songs at the model's sample rate stay where they are. The results of the last run are kept
    beside `folder`, in cache/. They are made again only if they or their sources have changed
    (`unchanged` says how that is detected).

    UserError with every fault of the songs.
    """
    kept = folder.parent.resolve() / paths.CACHE
    root = params.data.root
    for ours in (folder, kept):
        if root and Path(root).resolve().is_relative_to(ours.resolve()):
            raise UserError(
                f"data.root: {root}: is in {ours}, whose files this stage deletes. Move your songs "
                "elsewhere."
            )
    shutil.rmtree(folder, ignore_errors=True)  # it may hold songs of an earlier run
    known = Known(kept / "known.json")
    try:
        manifest = _prepare(params, folder, kept, known)
    except BaseException:
        known.save(all_asked=False)
        raise
    known.save()
    for name in MADE:
        _delete_others(kept / name, known.files)
    return manifest


def _prepare(params: Params, folder: Path, kept: Path, known: Known) -> Manifest:
    root, layout, groups = _source(params, kept, known)
    checked, warnings = check_root(root, layout, known)
    songs = [
        Song(
            name=song.name,
            split=song.split,
            group=groups.get((song.split, song.name), song.split),
            folder=song.folder,
            samples=song.headers[MIXTURE].samples,
            silent=tuple(stem for stem in STEMS if stem in song.silent),
        )
        for song in checked
    ]
    songs = _with_validation(params, songs)
    for stem in params.stems:
        for split in ("train", params.evaluate.split):
            Manifest(params.model.sample_rate, tuple(songs)).require(split, stem)
    rate, new_rate = checked[0].headers[MIXTURE].sample_rate, params.model.sample_rate
    if rate != new_rate:
        copies = _resampled(checked, rate, new_rate, kept / "songs", known)
        songs = [
            _linked(replace(song, folder=copy, samples=samples), folder / "songs" / song.split)
            for song, (copy, samples) in zip(songs, copies, strict=True)
        ]
    elif root.is_relative_to(kept):
        songs = [_linked(s, folder / s.folder.relative_to(kept).parent) for s in songs]
    if params.data.train_on_validation:
        songs += [replace(song, split="train") for song in songs if song.split == "valid"]
    if not any(song.split == "pretrain" for song in songs):
        # Only the band has a corpus of its own to pretrain on.
        songs += [replace(song, split="pretrain") for song in songs if song.split == "train"]
    songs.sort(key=lambda song: (SPLITS.index(song.split), song.name))
    manifest = Manifest(params.model.sample_rate, tuple(songs))
    _save_checks(folder / paths.CHECKS.name, checked, warnings)
    manifest.save(folder / paths.MANIFEST.name)
    _summary(manifest, warnings)
    print(_scored(manifest.split(params.evaluate.split)), end="")
    return manifest


def _source(
    params: Params, kept: Path, known: Known
) -> tuple[Path, Layout, dict[tuple[str, str], str]]:
    """The songs' root and required layout, and the group of each song that has one."""
    shortest = longest_segment(params) / params.model.sample_rate
    both = dict.fromkeys(("train", "test"), PARTS)
    data = params.data
    if data.source == "band":
        root = kept / "band"
        groups = _render(params, root, known)
        _delete_others(root, known.files)
        return root, Layout({**both, "pretrain": (MIXTURE,)}, shortest=shortest), groups
    assert data.root is not None
    root = Path(data.root)
    if not root.is_dir():
        raise UserError(f"data.root: {root}: no such folder. Give the folder of the songs.")
    if data.source == "musdb18":
        musdb.decode(root, kept / "musdb18", params.model.sample_rate, known)
        _delete_others(kept / "musdb18", known.files)
        return kept / "musdb18", Layout(both, shortest=shortest), {}
    if data.source == "musdb18hq":
        musdb.fetch(root, data.accept_licence)
        return root, musdb.layout(shortest), {}
    optional = frozenset(["valid"])
    return root, Layout({**both, "valid": PARTS}, optional=optional, shortest=shortest), {}


def longest_segment(params: Params) -> int:
    """Samples of the longest training segment in this experiment."""
    recipes = [params.stage1, params.stage2]
    if params.weights.source == "pretrain" and "pretrained" in params.inits:
        recipes.append(params.pretrain)
    return max(recipe.segment for recipe in recipes)


def _render(params: Params, root: Path, known: Known) -> dict[tuple[str, str], str]:
    """Render the band's songs below `root`; return the group of each (split, name)."""
    from .band import render_corpus

    band = params.band
    counts = {"train": band.train + band.valid, "test": band.test, "pretrain": band.pretrain}
    rendered = render_corpus(
        root,
        counts=counts,
        seconds=band.seconds,
        seed=band.seed,
        soundfonts=[Path(path) for path in band.soundfonts],
        workers=at_once(sum(counts.values()), RENDERING),
        known=known,
    )
    return {(song["split"], song["name"]): song["group"] for song in rendered}


def _with_validation(params: Params, songs: list[Song]) -> list[Song]:
    """Move some training songs to the validation split, unless it has songs already.

    For the band, the last `band.valid` songs. For other data, the songs on musdb's list, or else
    the last `data.valid_songs`.
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
            f"train/ has {len(names)} song(s), and validation takes {len(chosen)}: none are left "
            "to train on. Add songs, or lower data.valid_songs."
        )
    return [
        replace(song, split="valid") if song.split == "train" and song.name in chosen else song
        for song in songs
    ]


def _resampled(
    songs: list[Checked], rate: int, new_rate: int, folder: Path, known: Known
) -> list[tuple[Path, int]]:
    """Copy the songs at another sample rate, as float, so that mixtures stay sums of stems.

    Returns each copy's folder and length in samples. Existing copies of the same samples are kept.
    """
    how: dict[str, Any] = {
        "rates": [rate, new_rate],
        "code": code(__file__, audio.samples.__file__, audio.lengths.__file__),
    }
    how |= {name: version(name) for name in ("soundfile", "torch", "torchaudio")}

    def target(song: Checked) -> Path:
        return folder / song.split / song.name

    def entry(song: Checked) -> dict[str, Any]:
        files = [target(song) / f"{part}.wav" for part in song.parts]
        return {"name": f"copy {song.file()}", "files": files, "given": [how, song.digests]}

    def copy(song: Checked) -> None:
        for part, file in zip(song.parts, entry(song)["files"], strict=True):
            resampled = audio.resample(audio.read(song.path(part)), rate, new_rate)
            audio.write(file, resampled, new_rate, "FLOAT")
        samples[song.file()] = resampled.shape[1]
        known.put(**entry(song), facts=resampled.shape[1])

    samples = {song.file(): known.get(**entry(song)) for song in songs}
    missing = [song for song in songs if samples[song.file()] is None]
    if missing:
        # Threads are enough: reading, resampling and writing release the GIL.
        headers = [song.headers[MIXTURE] for song in missing]
        longest = max(header.samples * header.channels for header in headers)
        workers = at_once(len(missing), RESAMPLING * longest)
        with _one_thread_each(), ThreadPoolExecutor(workers) as pool:
            title = f"prepare: to {new_rate} Hz"
            for _ in bar(pool.map(copy, missing), total=len(missing), desc=title, unit="song"):
                pass
    return [(target(song), samples[song.file()]) for song in songs]


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Give each song one torch thread: songs share the cores, more threads would only wait."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _linked(song: Song, split: Path) -> Song:
    """Put a song from the cache into the stage's output: hard links, or copies."""
    folder = split / song.name
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(song.folder.glob("*.wav")):
        try:
            os.link(source, folder / source.name)
        except OSError:  # not all file systems have hard links
            shutil.copy2(source, folder / source.name)
    return replace(song, folder=folder)


def _delete_others(folder: Path, files: Set[Path]) -> None:
    """Delete everything below a folder except these files, and folders left empty."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                path.rmdir()
        elif path not in files:
            path.unlink()


def _save_checks(path: Path, songs: list[Checked], warnings: list[Finding]) -> None:
    """Write warnings and digests. Through the digests a changed song changes trainings' inputs."""
    content = {
        "warnings": [str(warning) for warning in warnings],
        "samples": {song.file(): song.digests for song in songs},
    }
    write_json(path, content)


def _scored(songs: list[Song]) -> str:
    """What `evaluate` will leave out of the scores, and why; empty if nothing."""
    lacking = {song.name: song.silent for song in songs if song.silent}
    if not lacking:
        return ""
    counts = [f"{s} {sum(s not in song.silent for song in songs)}" for s in STEMS]
    left_out = [f"{name!r} ({' and '.join(stems)})" for name, stems in lacking.items()]
    return (
        f"prepare: of {len(songs)} {songs[0].split} songs, some have silent stems. Songs scored: "
        f"{', '.join(counts)}; by sdr_v4, which needs all stems, {len(songs) - len(lacking)}. "
        f"Silent: {', '.join(left_out)}\n"
    )


def _summary(manifest: Manifest, warnings: list[Finding]) -> None:
    for warning in warnings[:SHOWN]:
        print(f"warning: {warning}", file=sys.stderr)
    if len(warnings) > SHOWN:
        print(f"warning: {len(warnings) - SHOWN} more, in checks.json", file=sys.stderr)
    counts = [f"{sum(song.split == split for song in manifest.songs)} {split}" for split in SPLITS]
    unique = {song.folder: song.samples for song in manifest.songs}
    hours = sum(unique.values()) / manifest.sample_rate / 3600
    print(f"prepare: {', '.join(counts)} songs, {hours:.2f} h, {manifest.sample_rate} Hz")
