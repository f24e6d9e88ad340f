"""The songs of an experiment: find, check, render and prepare them, and list them in a manifest."""
