"""Stage `prepare`: the songs of the experiment, checked, at the model's sample rate.

Writes data/prepared/manifest.json, and the songs that do not lie elsewhere at the model's rate.
Keeps in data/cache what it made and read, for its next run.
"""

from jukesep.base import params, paths
from jukesep.base.errors import reported
from jukesep.pipeline import pretrained
from jukesep.songs import prepare

if __name__ == "__main__":
    with reported():
        p = params.load()
        # Before any work: weights that could not be had later on would cost all of it.
        pretrained.check(p.weights, p.inits)
        prepare.prepare(p, paths.PREPARED)
