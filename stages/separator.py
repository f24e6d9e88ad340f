"""Stage `separator`: the trained models as files in models/separator/."""

from jukesep.errors import reported

if __name__ == "__main__":
    with reported():
        # Seconds, in which Ctrl-C should already end in a line.
        from jukesep import pack, params

        pack.pack(params.load())
