"""The stages' entry points: build trainings and evaluations from the parameters."""
