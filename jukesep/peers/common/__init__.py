"""What the peers share: what a peer is, and how one is built, trained and run over a song."""
