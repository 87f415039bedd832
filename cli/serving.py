"""`lares up` and `lares serve`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from cli import console
from services.kit.settings import SERVICES

GATEWAY = "gateway"


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    app.command("up")(up)
    app.command("serve")(serve)


def up(ctx: typer.Context) -> None:
    """Serve everything from this machine: all five services and the gateway.

    Pulls the starter first if there is no model yet, and behind it what else is required. Prints one line that
    begins `lares ready` when all is; Ctrl-C stops it.
    """
    _serve(ctx.obj, (*SERVICES, GATEWAY), with_starter=True)


def serve(
    ctx: typer.Context,
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help=f"Any of {', '.join((*SERVICES, GATEWAY))}.")
    ],
) -> None:
    """Serve some of the services from this machine; only what they need is imported."""
    _serve(ctx.obj, names, with_starter=False)


def _serve(overrides: console.Overrides, names: Sequence[str], *, with_starter: bool) -> None:
    # What serves is a third of what there is to import: other commands start without it.
    from cli.house import run_house

    run_house(overrides, names, with_starter=with_starter)
