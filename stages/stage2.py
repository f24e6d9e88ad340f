"""Stage `stage2`: train the mixture's encoder E2 to match the stem's latents.

usage: python -m stages.stage2 STEM {pretrained,scratch}
"""

import sys

from jukesep.base.errors import reported
from jukesep.resume.launch import launch

if __name__ == "__main__":
    with reported():
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params
        from jukesep.pipeline import train
        from jukesep.resume import beside

        p = params.load()
        if not launch(p.stage2.batch, "stage2"):
            with beside.next_items(p, [(stem, init) for stem in p.stems for init in p.inits]):
                train.stage2(p, stem=sys.argv[1], init=sys.argv[2])
