"""The folder of a run and what lies in it: lock, settings, checkpoints, logs. It knows no task and no training loop."""
