"""Stage `baselines`: what no training at all, and an oracle, score on the songs of evaluation."""

from pathlib import Path

from jukesep import evaluation, params
from jukesep.errors import reported
from jukesep.songs import Manifest

if __name__ == "__main__":
    with reported():
        p = params.load()
        manifest = Manifest.load("data/prepared/manifest.json")
        songs = manifest.split(p.evaluate.split)
        rows = evaluation.score_baselines(songs, p.stems, manifest.sample_rate, p.evaluate.museval)
        evaluation.write_scores(Path("results/baselines.csv"), rows)
