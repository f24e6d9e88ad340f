"""Stage `prepare`: check the experiment's songs and bring them to the model's sample rate.

Writes data/prepared/manifest.json, and those songs that are rendered, decoded or resampled.
Keeps intermediate results in data/cache for the next run.
"""

from jukesep.base import params, paths
from jukesep.base.errors import reported
from jukesep.pipeline import pretrained
from jukesep.songs import prepare

if __name__ == "__main__":
    with reported():
        p = params.load()
        # First of all, so that missing weights do not fail a later stage after much work.
        pretrained.check(p.weights, p.inits)
        prepare.prepare(p, paths.PREPARED)
