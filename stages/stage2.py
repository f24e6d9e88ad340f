"""Stage `stage2`: train the mixture's encoder E2 to match the stem's latents."""

from jukesep.base.errors import reported
from jukesep.resume import forkserver
from jukesep.resume.launch import launch

if __name__ == "__main__":
    with reported():
        from jukesep.base import params, paths
        from jukesep.resume import beside

        p = params.load()
        stem, init = params.item(__doc__, stem=p.stems, init=p.inits)
        item, out = {"stem": stem, "init": init}, paths.run("stage2", stem, init)
        if not beside.take_results(p, "stage2", item, out):
            forkserver.enter()
            if not launch(p.stage2.batch, "stage2"):
                # Importing takes seconds; from here on Ctrl-C ends in one line.
                from jukesep.pipeline import train

                with beside.next_items(p, [(stem, init) for stem in p.stems for init in p.inits]):
                    train.stage2(p, stem, init)
