"""The folder of a training in progress: saves, logs, status. Nothing here changes a result."""
