"""Stage `peer`: train a peer, a library's network, on all stems.

usage: python -m stages.peer NAME
"""

import sys

from jukesep.base.errors import reported
from jukesep.resume import forkserver

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params
        from jukesep.pipeline import peers
        from jukesep.resume import beside

        p = params.load()
        with beside.next_items(p, [(name,) for name, recipe in p.peers if recipe]):
            peers.peer(p, name=sys.argv[1])
