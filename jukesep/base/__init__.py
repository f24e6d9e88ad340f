"""What everything else rests on: errors, files, paths, parameters, seeds, processes."""
