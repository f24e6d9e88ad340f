"""Stage `stage1`: fine-tune the VQ-VAE on one isolated stem.

usage: python -m stages.stage1 STEM {pretrained,scratch}
"""

import sys

from jukesep.errors import reported
from jukesep.launch import launch

if __name__ == "__main__":
    with reported():
        # Seconds, in which Ctrl-C should already end in a line.
        from jukesep import experiment, params

        p = params.load()
        if not launch(p.stage1.batch, "stage1"):
            experiment.stage1(p, stem=sys.argv[1], init=sys.argv[2])
