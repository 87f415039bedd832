"""Where `lares` begins: global options, and the commands of every room."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import (
    chat,
    console,
    importing,
    memory,
    models,
    pulling,
    scoring,
    serving,
    speech,
    store,
    system,
    training,
    updates,
)

GLOBAL_OPTIONS = ("--home", "--http", "--grpc", "--log-level")

app = typer.Typer(
    name="lares",
    help="Keep, serve and teach AI models on your own machines.",
    epilog="--home, --http, --grpc and --log-level may stand before or after the command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lares {importlib.metadata.version('lares')}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    home: Annotated[
        Path | None, typer.Option(help="Folder of everything Lares keeps. LARES_HOME; default ~/.lares.")
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The gateway's address. LARES_HTTP; default 127.0.0.1:7210."),
    ] = None,
    grpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The services' address. LARES_GRPC; default 127.0.0.1:7211."),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error. LARES_LOG_LEVEL.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options that every command has."""
    given = {"home": home, "http": http, "grpc": grpc, "log_level": log_level}
    ctx.obj = console.Overrides({key: value for key, value in given.items() if value is not None})


serving.register(app)
pulling.register(app)
models.register(app)
updates.register(app)
importing.register(app)
store.register(app)
chat.register(app)
scoring.register(app)
speech.register(app)
training.register(app)
memory.register(app)
system.register(app)


def globals_first(arguments: list[str]) -> list[str]:
    """Move the global options to the front, where the parser wants them, so that a person may write them anywhere."""
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*front, *rest, word, *words]
        name, equals, _ = word.partition("=")
        if name not in GLOBAL_OPTIONS:
            rest.append(word)
            continue
        front.append(word)
        if not equals and (value := next(words, None)) is not None:
            front.append(value)
    return [*front, *rest]


def main() -> None:
    """Run the command line."""
    app(globals_first(sys.argv[1:]))
