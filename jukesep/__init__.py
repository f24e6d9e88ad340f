"""Transfer learning with Jukebox for music source separation."""
