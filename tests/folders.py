"""Small folders of songs for tests, in MUSDB18-HQ's layout."""

import os

import numpy as np
import soundfile

from jukesep.songs import musdb
from jukesep.songs.manifest import MIXTURE, STEMS

RATE = 44_100


def write_song(folder, samples=RATE // 2, rate=RATE, channels=2, seed=0, subtype="PCM_16"):
    """A song of noise whose mixture is the exact sum of its stems; what each part holds."""
    noise = np.random.default_rng(seed).integers(-4000, 4000, (len(STEMS), samples, channels))
    parts = dict(zip(STEMS, noise / 32768, strict=True))
    parts[MIXTURE] = sum(parts.values())
    folder.mkdir(parents=True, exist_ok=True)
    for part, audio in parts.items():
        soundfile.write(folder / f"{part}.wav", audio, rate, subtype=subtype)
    return parts


def write_musdb18hq(root, **options):
    """150 folders named as MUSDB18-HQ's need be, all with the same song, which takes no space."""
    names = sorted(musdb.validation_songs())
    names += [f"Band {number:02} - Song" for number in range(musdb.SONGS["train"] - len(names))]
    tests = [f"Other {number:02} - Song" for number in range(musdb.SONGS["test"])]
    folders = [root / "train" / name for name in names] + [root / "test" / name for name in tests]
    write_song(folders[0], **options)
    for folder in folders[1:]:
        folder.mkdir(parents=True)
        for path in folders[0].iterdir():
            os.link(path, folder / path.name)
    return root
