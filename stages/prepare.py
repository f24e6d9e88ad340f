"""Stage `prepare`: the songs of the experiment, checked, at the model's sample rate.

Writes data/prepared/manifest.json, and the songs that do not lie elsewhere at the model's rate.
Keeps in data/cache what it made and read, for its next run.
"""

from pathlib import Path

from jukesep import params, prepare
from jukesep.errors import reported

if __name__ == "__main__":
    with reported():
        prepare.prepare(params.load(), Path("data/prepared"))
