"""Stage `baselines`: fit the static equaliser; score it, the other baselines and the oracle."""

from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.pipeline import evaluate

if __name__ == "__main__":
    with reported():
        evaluate.baselines(params.load())
