"""The commands of `jukesep`. Each imports what it needs when it is called, to keep --help fast."""
