"""Stage `weights`: write the weights that stage 1 starts from, as a Jukebox checkpoint.

scratch: random weights. pretrained: Jukebox's, those in a file, or (weights.source=pretrain)
weights trained here on the mixtures of the pretraining songs.
"""

from jukesep.base.errors import reported
from jukesep.resume import forkserver
from jukesep.resume.launch import launch

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        from jukesep.base import params

        p = params.load()
        (init,) = params.item(__doc__, init=p.inits)
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.pipeline import train

        trained = init == "pretrained" and p.weights.source == "pretrain"
        if not (trained and launch(p.pretrain.batch, "pretrain")):
            train.weights(p, init)
