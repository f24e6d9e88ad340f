"""The folder of a training in progress: saves, logs and status. Nothing here affects a result."""
