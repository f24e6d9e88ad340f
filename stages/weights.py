"""Stage `weights`: what stage 1 starts from, in Jukebox's checkpoint layout.

usage: python -m stages.weights {pretrained,scratch}

scratch: random weights. pretrained: Jukebox's, a file's, or (weights.source=pretrain) those of
the same VQ-VAE trained here on mixtures of the band's pretraining songs.
"""

import sys

from jukesep.base.errors import reported
from jukesep.resume.launch import launch

if __name__ == "__main__":
    with reported():
        # Seconds, in which Ctrl-C should already end in a line.
        from jukesep.base import params
        from jukesep.pipeline import train

        p, init = params.load(), sys.argv[1]
        trained = init == "pretrained" and p.weights.source == "pretrain"
        if not (trained and launch(p.pretrain.batch, "pretrain")):
            train.weights(p, init)
