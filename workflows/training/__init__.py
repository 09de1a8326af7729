"""Training of a run: data, loop, checkpoints, bundle."""
