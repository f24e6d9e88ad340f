"""Stage `evaluate`: separate and score every evaluation song at every checkpoint of stage 2."""

from jukesep.base.errors import reported
from jukesep.resume import forkserver

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        from jukesep.base import params

        p = params.load()
        stem, init = params.item(__doc__, stem=p.stems, init=p.inits)
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.pipeline import evaluate

        evaluate.evaluate(p, stem, init)
