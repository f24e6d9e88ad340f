"""Stage `listen`: make a page to listen to the evaluation songs."""

from jukesep.base import params
from jukesep.base.errors import reported
from jukesep.report.listen import of_experiment

if __name__ == "__main__":
    with reported():
        of_experiment(params.load().model_dump(mode="json"))
