"""What was asked for? The command line: one function for each command. It imports what it needs when it is called, so
help stays quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench import __version__
from bench.cli import fleet, inspecting, judging, measuring, predicting, publishing
from bench.errors import BadRequest
from bench.terminal.output import lost_output, protect
from bench.terminal.screen import complain, printable

app = typer.Typer(
    name="decodebench",
    help="How memory-bound is LLM decode? Predict first, measure, judge.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for room in (measuring, judging, publishing, predicting, inspecting):
    app.add_typer(room.app)
app.add_typer(fleet.app, name="fleet")


def print_version(asked: bool) -> None:
    if asked:
        print(f"decodebench {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=print_version, is_eager=True, help="print the version")]


@app.callback()
def decodebench(version: Version = False) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the command line. An error that the user can mend becomes one line and exit code 2."""
    protect()
    code: int | str | None = 0
    try:
        app()
    except BadRequest as error:
        message = str(error)
    except SystemExit as done:
        message, code = "", done.code
    except OSError as error:  # a file that cannot be read or written, or a full disk
        if error.errno is None:
            raise
        message = ": ".join(filter(None, (error.filename and str(error.filename), error.strerror)))
    else:
        message = ""
    message = message or lost_output()
    if message:
        complain(f"decodebench: {printable(message)}")
        sys.exit(2)
    sys.exit(code)
