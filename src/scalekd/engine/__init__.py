"""The training engine: one explicit loop that trains whatever a task gives it.

It may know runs (folders, checkpoints, logs) and torch; it may not know teachers, detectors or segmenters.
"""
