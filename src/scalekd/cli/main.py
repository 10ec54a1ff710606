"""Entry point of the command line: collects the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, NoReturn

import typer

from scalekd.cli.adapt import adapt
from scalekd.cli.cache import cache
from scalekd.cli.data import data
from scalekd.cli.distill import distill
from scalekd.cli.evaluate import evaluate
from scalekd.cli.export import export
from scalekd.cli.help import WIDEST, Command, Group
from scalekd.cli.import_ import import_
from scalekd.cli.inspect import inspect
from scalekd.cli.predict import predict
from scalekd.cli.quickstart import quickstart
from scalekd.cli.recipes import recipes
from scalekd.cli.report import report
from scalekd.cli.transfer import transfer
from scalekd.engine.launcher import launched
from scalekd.engine.signals import Stop
from scalekd.errors import Interrupted, Stopped, UserError, first_line, printable
from scalekd.recipes.other_names import suggest
from scalekd.versions import versions

_HELP = """Distil a pre-trained vision transformer into any small image model (ScaleKD, arXiv 2411.06786).

`scalekd COMMAND --help` explains a command. Results go to standard output, everything else to standard error. Exit
codes: 0, 1 if some images could not be read or data have faults, 2 for wrong input, 130 and 143 for Ctrl-C and SIGTERM.

Examples:
    scalekd quickstart
    scalekd inspect swin_base_patch4_window7_224 resnet18
    scalekd distill --teacher TEACHER --student resnet18 --data DATA --output A
"""

app = typer.Typer(
    name="scalekd",
    cls=Group,
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables truncate words in a narrow terminal
    context_settings={"max_content_width": WIDEST},
)
for command in (quickstart, distill, evaluate, adapt, cache, inspect, export, predict, report):
    app.command(cls=Command)(command)
app.command("import", cls=Command)(import_)
app.add_typer(data, name="data")
app.add_typer(recipes, name="recipes")
app.add_typer(transfer, name="transfer")

# click's UsageError, which typer does not export: the parent of typer's public BadParameter.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(versions())
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print what a bug report needs: versions, device, system.",
        ),
    ] = False,
) -> None:
    pass


def run() -> None:
    """Run the command line; wrong input prints one line and exits with 2, Ctrl-C with 130, SIGTERM with 143."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names that the terminal cannot show
    try:
        with Stop(), _joined():
            code = app(standalone_mode=False, prog_name="scalekd")
        sys.exit(code)
    except _UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            print(message, file=sys.stderr)
            sys.exit(2)
        if hasattr(error, "option_name") and hasattr(error, "possibilities"):  # no such option
            message = f"{error.message}{_nearest_flag(error)}"  # type: ignore[attr-defined]
        _refuse(" ".join(message.split()))
    except MemoryError:
        _refuse("memory: there is not enough; set micro_batch to less than the batch, or workers or resolution lower")
    except RecursionError as error:
        _refuse(f"input: nested too deeply ({error})")
    except OSError as error:
        _refuse(f"{error.filename or 'file'}: {error.strerror or error}")
    except UserError as error:
        _refuse(error)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        _refuse(f"memory: {first_line(error)} Set micro_batch to less than the batch to use less")
    except (Interrupted, Stopped) as stop:
        if str(stop):
            print(printable(stop), file=sys.stderr)
        sys.exit(stop.exit_code)


def _joined() -> AbstractContextManager[object]:
    """Join the processes that torch's launcher has started; without it, torch is not imported."""
    if not launched():
        return nullcontext()
    from scalekd.engine.processes import joined

    return joined()


def _nearest_flag(error: Exception) -> str:
    """Suggest the flag that was probably meant; see `suggest`."""
    options = [p for p in error.ctx.command.params if p.param_type_name == "option"]  # type: ignore[attr-defined]
    flags = [flag for option in options for flag in (*option.opts, *option.secondary_opts)]
    return suggest(error.option_name, flags)  # type: ignore[attr-defined]


def _refuse(message: object) -> NoReturn:
    print(f"error: {UserError(message)}", file=sys.stderr)
    sys.exit(2)
