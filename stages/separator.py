"""Stage `separator`: pack the trained models into models/separator/."""

from jukesep.base.errors import reported
from jukesep.resume import forkserver

if __name__ == "__main__":
    with reported():
        forkserver.enter()
        # Importing takes seconds; from here on Ctrl-C ends in one line.
        from jukesep.base import params
        from jukesep.pipeline import pack

        pack.pack(params.load())
