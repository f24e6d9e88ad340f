"""The foundation of all other folders: errors, files, paths, parameters, seeds, processes."""
