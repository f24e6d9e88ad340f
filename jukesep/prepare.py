"""The songs of an experiment: rendered or found, checked, brought to the model's sample rate."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from . import audio, pretrained
from .band import render_corpus
from .params import Params
from .progress import bar
from .songs import MIXTURE, STEMS, Manifest, Song, read_folder


def prepare(params: Params, folder: Path) -> Manifest:
    """Write manifest.json and the audio it names to `folder`.

    The band's last `band.valid` training songs are its validation songs. UserError, before any
    work, if the pretrained weights could not be had later on.
    """
    pretrained.check(params.weights, params.inits)
    shutil.rmtree(folder, ignore_errors=True)  # songs of an earlier run are not this run's
    band = params.band
    rendered = render_corpus(
        folder / "band",
        counts={
            "train": band.train + band.valid,
            "test": band.test,
            "pretrain": band.pretrain,
        },
        seconds=band.seconds,
        seed=band.seed,
    )
    groups = {(song["split"], song["name"]): song["group"] for song in rendered}
    songs = []
    for split in ("train", "test", "pretrain"):
        root = folder / "band" / split
        found = read_folder(root, (MIXTURE,) if split == "pretrain" else (MIXTURE, *STEMS))
        for number, (name, header) in enumerate(found):
            validates = split == "train" and number >= len(found) - band.valid
            songs.append(
                Song(
                    name=name,
                    split="valid" if validates else split,
                    group=groups[split, name],
                    folder=root / name,
                    samples=header.samples,
                )
            )
    if header.sample_rate != params.model.sample_rate:
        songs = _resampled(songs, folder / "songs", params.model.sample_rate)
    manifest = Manifest(params.model.sample_rate, tuple(songs))
    manifest.save(folder / "manifest.json")
    return manifest


def _resampled(songs: list[Song], folder: Path, sample_rate: int) -> list[Song]:
    """Copies of the songs at another rate, as float: the mixture stays the sum of the stems."""

    def copy(song: Song) -> Song:
        target = folder / song.split / song.name
        for part in (MIXTURE,) if song.split == "pretrain" else (MIXTURE, *STEMS):
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
