"""Stage `baselines`: what no training at all, and an oracle, score on the songs of evaluation."""

from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.pipeline import evaluate

if __name__ == "__main__":
    with reported():
        evaluate.baselines(params.load())
