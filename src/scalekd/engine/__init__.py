"""The training engine: one explicit loop that trains any task, see `Task`.

It may know runs (folders, checkpoints, logs) and torch; it may not know teachers, detectors or segmenters.
"""
