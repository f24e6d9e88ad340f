"""Stage `baselines`: score the baselines and the oracle on the evaluation songs."""

from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.pipeline import evaluate

if __name__ == "__main__":
    with reported():
        evaluate.baselines(params.load())
