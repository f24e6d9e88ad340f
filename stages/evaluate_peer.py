"""Stage `evaluate_peer`: separate and score every evaluation song with a peer."""

from jukesep.base.errors import reported
from jukesep.resume import forkserver

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        from jukesep.base import params, paths

        p = params.load()
        (name,) = params.item(__doc__, peer=p.peers.chosen)
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.kernels import devices
        from jukesep.pipeline import systems
        from jukesep.systems import peer

        steps = p.peers.recipe(name).steps
        found = peer.load(paths.peer_checkpoint(name, steps), devices.choose(p.device, p.threads))
        systems.evaluate(p, name, found, steps)
