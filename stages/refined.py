"""Stage `refined`: score the stems of all four models after the default refinement.

A refinement needs models of all four stems: with fewer stems there are no scores.
"""

from jukesep.base.errors import reported

if __name__ == "__main__":
    with reported():
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params, paths
        from jukesep.kernels import devices
        from jukesep.pipeline import systems
        from jukesep.separation.separator import load_separator
        from jukesep.songs.manifest import STEMS, Manifest
        from jukesep.systems import refined

        p = params.load()
        found, workers = [], 1
        if set(p.stems) == set(STEMS):
            separator = load_separator(paths.SEPARATOR).to(devices.choose(p.device, p.threads))
            songs = Manifest.load(paths.MANIFEST).split(p.evaluate.split)
            found = [refined.system(separator)]
            workers = refined.workers(separator, songs, p.separation, p.evaluate.museval)
        systems.evaluate(p, "refined", found, p.stage2.steps, workers)
