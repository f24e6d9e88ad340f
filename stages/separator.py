"""Stage `separator`: the trained models as files in models/separator/."""

from jukesep.base.errors import reported

if __name__ == "__main__":
    with reported():
        # Seconds, in which Ctrl-C should already end in a line.
        from jukesep.base import params
        from jukesep.pipeline import pack

        pack.pack(params.load())
