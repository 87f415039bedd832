"""What the commands share: the consoles, JSON, tables, and the place where an error becomes an exit code."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from cli.client import Client
from services.kit.errors import Cancelled, LaresError
from services.kit.settings import Settings, load_settings
from services.kit.status import reason_of

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)
if not out.is_terminal:
    # A pipe has no width: whoever reads it wants a row on a line.
    out.width = 10_000

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""

_WHOLE_64 = {
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT64,
}

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


class Overrides(dict[str, object]):
    """Settings that the command line gave."""

    def settings(self) -> Settings:
        """The settings in force."""
        return load_settings(Settings, self)


def run(ctx: typer.Context, work: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Run a command as a client of the services."""

    async def connected(settings: Settings) -> None:
        async with Client(settings) as client:
            await work(client)

    with exit_code():
        asyncio.run(connected(ctx.obj.settings()))


@contextmanager
def exit_code() -> Iterator[None]:
    """End the command as a shell expects: an error is one line and exit code 1, Ctrl-C is 130."""
    try:
        yield
    except LaresError as error:
        fail(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader of our output has gone (`lares list | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + getattr(signal, "SIGPIPE", 13)) from None


def fail(error: LaresError) -> NoReturn:
    """Print what went wrong and end with exit code 1."""
    if isinstance(error, Cancelled):
        raise typer.Exit(INTERRUPTED)
    err.print("[bold red]error:[/] ", end="")
    err.print(str(error), markup=False)
    for violation in error.violations:
        if violation.description not in str(error):
            err.print(f"  {violation.field}: {violation.description}", markup=False)
    err.print(f"[dim]{reason_of(type(error))}[/]")
    raise typer.Exit(1)


def print_json(data: object) -> None:
    """Print JSON, indented, as it is."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))


def to_json(message: Message) -> dict[str, Any]:
    """A message as JSON for programs: proto field names, every field, and whole numbers as numbers, 64 bits too."""
    data = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return _numbers(data, message)


def _numbers(data: dict[str, Any], message: Message) -> dict[str, Any]:
    """Undo proto JSON's strings for 64-bit numbers, which jq and Python would have to undo each time."""
    for field in message.DESCRIPTOR.fields:
        if field.name not in data or data[field.name] is None:
            continue
        value = data[field.name]
        if field.cpp_type in _WHOLE_64:
            data[field.name] = [int(item) for item in value] if isinstance(value, list) else int(value)
        elif field.message_type is not None and isinstance(value, dict) and not _is_map(field):
            _numbers(value, getattr(message, field.name))
        elif field.message_type is not None and isinstance(value, list):
            for item, inner in zip(value, getattr(message, field.name), strict=True):
                if isinstance(item, dict):
                    _numbers(item, inner)
    return data


def _is_map(field: Any) -> bool:
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """Print rows under their headings, or a line that says what to do when there are none."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns[:-1]:
        table.add_column(column, no_wrap=True)
    table.add_column(columns[-1], overflow="fold")
    for row in rows:
        # As text: what comes from a model's files must not be taken for markup.
        table.add_row(*(Text(cell) for cell in row))
    if table.row_count:
        out.print(table)
    else:
        err.print(empty, markup=False)


def transfer_progress(*labels: ProgressColumn, quiet: bool) -> Progress:
    """A bar of bytes with its speed, behind these columns."""
    columns = (*labels, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=err, disable=quiet)


def size_text(num_bytes: int) -> str:
    """A length for people, in powers of 1000: `98.4 MB`."""
    amount, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def enum_text(message: Message, field: str) -> str:
    """An enum's value for people: `MODEL_STATE_AVAILABLE` -> `available`."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    if descriptor is None:
        raise TypeError(f"{field} is not an enum")
    zero = descriptor.values_by_number[0].name
    name = descriptor.values_by_number[getattr(message, field)].name
    return name.removeprefix(zero.removesuffix("UNSPECIFIED")).lower().replace("_", " ")
