"""The folder of a run and its files: lock, settings, checkpoints, logs. Knows no task and no training loop."""
