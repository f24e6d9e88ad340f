"""Stage `stage2`: train the mixture's encoder E2 to meet the stem's latents.

usage: python -m stages.stage2 STEM {pretrained,scratch}
"""

import sys

from jukesep.errors import reported
from jukesep.launch import launch

if __name__ == "__main__":
    with reported():
        # Seconds, in which Ctrl-C should already end in a line.
        from jukesep import experiment, params

        p = params.load()
        if not launch(p.stage2.batch, "stage2"):
            experiment.stage2(p, stem=sys.argv[1], init=sys.argv[2])
