"""Stage `evaluate`: separate and score every evaluation song at every checkpoint of stage 2.

usage: python -m stages.evaluate STEM {pretrained,scratch}
"""

import sys

from jukesep.base.errors import reported
from jukesep.resume import forkserver

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params
        from jukesep.pipeline import evaluate

        evaluate.evaluate(params.load(), stem=sys.argv[1], init=sys.argv[2])
