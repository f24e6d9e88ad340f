"""Stage `weights`: write the weights that stage 1 starts from, as a Jukebox checkpoint.

usage: python -m stages.weights {pretrained,scratch}

scratch: random weights. pretrained: Jukebox's, those in a file, or (weights.source=pretrain)
weights trained here on the mixtures of the pretraining songs.
"""

import sys

from jukesep.base.errors import reported
from jukesep.resume import forkserver
from jukesep.resume.launch import launch

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params
        from jukesep.pipeline import train

        p, init = params.load(), sys.argv[1]
        trained = init == "pretrained" and p.weights.source == "pretrain"
        if not (trained and launch(p.pretrain.batch, "pretrain")):
            train.weights(p, init)
