"""The songs of an experiment: found, checked, rendered, prepared, listed in a manifest."""
