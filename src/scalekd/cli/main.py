"""The command line: one short file a command, one place where errors become a line."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import torch
import typer

from scalekd.cli.adapt import adapt
from scalekd.cli.cache import cache
from scalekd.cli.distill import distill
from scalekd.cli.evaluate import evaluate
from scalekd.cli.inspect import inspect
from scalekd.cli.quickstart import quickstart
from scalekd.cli.recipes import recipes
from scalekd.cli.transfer import transfer
from scalekd.errors import UserError
from scalekd.training import Interrupted

app = typer.Typer(
    name="scalekd",
    help="Distil a pre-trained vision transformer into any small image model (ScaleKD, arXiv 2411.06786).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (quickstart, distill, evaluate, adapt, cache, inspect):
    app.command()(command)
app.add_typer(recipes, name="recipes")
app.add_typer(transfer, name="transfer")

# click's UsageError, which typer carries privately: the parent of typer's public BadParameter.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _print_version(wanted: bool) -> None:
    if wanted:
        names = ("scalekd", "torch", "torchvision", "timm", "pytorch-lightning")
        typer.echo("\n".join(f"{name} {metadata.version(name)}" for name in names))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and exit.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line; a wrong input ends in one line and exit code 2, Ctrl-C in exit code 130."""
    try:
        sys.exit(app(standalone_mode=False, prog_name="scalekd"))
    except _UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if message:  # without one, the help was printed
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        print(f"error: memory: {reason} Set micro_batch to less than the batch to use less", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or 'file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        sys.exit(130)
