"""Stage `peer`: train a peer, a library's network, on all stems.

usage: python -m stages.peer NAME
"""

import sys

from jukesep.base.errors import reported

if __name__ == "__main__":
    with reported():
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params
        from jukesep.pipeline import peers

        peers.peer(params.load(), name=sys.argv[1])
