"""What can be trained or measured, a package or file for each task. A task knows models and data; `engine` runs it."""
