"""Peers: other networks, trained on the same songs by the same loop."""
