"""Score the trained models on real music: the six-second excerpt in the package stempeg.

    uv run python -m studies.excerpt        # needs `dvc repro` (or pull) first

Prints the paper's SDR of each stem, plain and refined, beside that of mixture / 4. The
demo's models have been trained on nothing but the band: expect little. The excerpt's mixture is
slightly more than the sum of its stems (it was mastered).
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jukesep import audio, load_separator, sdr
from jukesep.audio import Audio
from jukesep.base.errors import UserError, reported
from jukesep.base.packages import package_folder
from jukesep.songs.manifest import MIXTURE, PARTS, STEMS


def decode(folder: Path) -> dict[str, Audio]:
    """The excerpt's mixture and stems, (channels, samples) at 44.1 kHz, decoded into `folder`."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise UserError("ffmpeg, which decodes the excerpt, is not installed.")
    song = next(package_folder("stempeg").glob("data/*.stem.mp4"))
    parts = {}
    for stream, part in enumerate(PARTS):
        path = folder / f"{part}.wav"
        command = [program, "-v", "error", "-i", str(song), "-map", f"0:a:{stream}"]
        subprocess.run([*command, "-y", str(path)], check=True)
        parts[part] = audio.read(path)
    return parts


def main(arguments: Sequence[str] | None = None) -> None:
    """Separate, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default="runs", help="folder of trainings")
    parser.add_argument("--init", default="pretrained", choices=["pretrained", "scratch"])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        parts = decode(Path(folder))
    plain, refined = (
        load_separator(options.models, options.init, refinement)(parts[MIXTURE], 44_100)
        for refinement in ("none", None)
    )
    print(f"{'SDR in dB':9} {'plain':>7} {'refined':>7} {'mixture / 4':>15}")
    rows = {
        stem: [
            sdr(parts[stem], estimate)
            for estimate in (plain[stem], refined[stem], parts[MIXTURE] / len(STEMS))
        ]
        for stem in plain
    }
    rows["mean"] = [sum(values) / len(values) for values in zip(*rows.values(), strict=True)]
    for stem, (*ours, scaled) in rows.items():
        print(f"{stem:9} {ours[0]:7.2f} {ours[1]:7.2f} {scaled:15.2f}")


if __name__ == "__main__":
    with reported():
        main()
