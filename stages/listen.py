"""Stage `listen`: the songs of evaluation as a page to listen to."""

from jukesep import params
from jukesep.errors import reported
from jukesep.listen import of_experiment

if __name__ == "__main__":
    with reported():
        of_experiment(params.load().model_dump(mode="json"))
