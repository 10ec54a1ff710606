"""Runs the command line with `python -m scalekd`."""

from scalekd.cli.main import run

run()
