"""Stage `stage1`: train the VQ-VAE on one isolated stem.

usage: python -m stages.stage1 STEM {pretrained,scratch}
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
        if not launch(p.stage1.batch, "stage1"):
            with beside.next_items(p, [(stem, init) for stem in p.stems for init in p.inits]):
                train.stage1(p, stem=sys.argv[1], init=sys.argv[2])
