"""`python -m scalekd`."""

from scalekd.cli.main import run

run()
