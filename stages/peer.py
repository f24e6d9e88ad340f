"""Stage `peer`: train a peer, a library's network, on all stems."""

from jukesep.base.errors import reported
from jukesep.resume import forkserver

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        from jukesep.base import params

        p = params.load()
        (name,) = params.item(__doc__, peer=p.peers.chosen)
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.pipeline import peers
        from jukesep.resume import beside

        with beside.next_items(p, [(one,) for one in p.peers.chosen]):
            peers.peer(p, name)
