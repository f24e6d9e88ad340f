"""Stage `refined`: score the stems of all four models after the default refinement.

A refinement needs models of all four stems: with fewer stems there are no scores.
"""

from jukesep.base.errors import reported
from jukesep.resume import forkserver

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params, paths
        from jukesep.kernels import devices
        from jukesep.pipeline import systems
        from jukesep.scoring import evaluation
        from jukesep.separation.separator import SECONDS, load_separator
        from jukesep.songs.manifest import STEMS, Manifest
        from jukesep.systems import refined

        p = params.load()
        found, workers = [], 1
        if set(p.stems) == set(STEMS):
            separator = load_separator(paths.SEPARATOR).to(devices.choose(p.device, p.threads))
            songs = Manifest.load(paths.MANIFEST).split(p.evaluate.split)
            found = [refined.system(separator)]
            chunk = round(SECONDS * separator.sample_rate)  # a separator has its own
            workers = evaluation.workers(
                songs,
                next(iter(separator.models.values())),
                p.separation.model_copy(update={"chunk": chunk}),
                p.evaluate.museval,
            )
        else:
            print("refined: needs the models of all four stems; nothing to score.")
        systems.evaluate(p, "refined", found, p.stage2.steps, workers)
