"""Stage `prepare`: the songs of the experiment, checked, at the model's sample rate.

Writes data/prepared/manifest.json; for the band also its songs (band/, 44.1 kHz), and for
songs whose rate is not the model's a copy that is (songs/).
"""

from pathlib import Path

from jukesep import params, prepare
from jukesep.errors import reported

if __name__ == "__main__":
    with reported():
        prepare.prepare(params.load(), Path("data/prepared"))
