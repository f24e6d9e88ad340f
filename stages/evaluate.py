"""Stage `evaluate`: separate every song at every checkpoint of stage 2, and score it.

usage: python -m stages.evaluate STEM {pretrained,scratch}
"""

import sys

from jukesep.base.errors import reported

if __name__ == "__main__":
    with reported():
        # Seconds, in which Ctrl-C should already end in a line.
        from jukesep.base import params
        from jukesep.pipeline import evaluate

        evaluate.evaluate(params.load(), stem=sys.argv[1], init=sys.argv[2])
