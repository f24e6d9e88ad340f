"""`python -m jukesep`: the command line."""

from .cli import main

main()
