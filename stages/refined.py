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
        from jukesep.songs.manifest import STEMS
        from jukesep.systems import refined

        p = params.load()
        device = devices.choose(p.device, p.threads)
        whole = set(p.stems) == set(STEMS)
        found = [refined.load(paths.SEPARATOR, device)] if whole else []
        systems.evaluate(p, "refined", found, p.stage2.steps, parallel=device.type == "cpu")
