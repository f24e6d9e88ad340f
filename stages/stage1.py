"""Stage `stage1`: fine-tune the VQ-VAE on one isolated stem.

usage: python -m stages.stage1 STEM {pretrained,scratch}
"""

import sys

from jukesep import experiment, params
from jukesep.errors import reported

if __name__ == "__main__":
    with reported():
        experiment.stage1(params.load(), stem=sys.argv[1], init=sys.argv[2])
