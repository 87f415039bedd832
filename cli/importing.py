"""`lares import`: models that other programs have on the machine already."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cli import console
from cli.client import Client
from cli.pulling import pull_model
from lares.downloader.v1 import downloader_pb2 as pb
from services.kit.errors import InvalidReference, LaresError, SourceNotFound, UnsupportedFormat
from services.kit.names import ModelRef, parse_version_name

NOTHING = (
    "nothing was found in the caches of Hugging Face and Ollama; `--from FOLDER` looks into another folder"
)


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    app.command("import")(import_)


def import_(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to import: a reference as this command lists them, with or without its revision, or the name"
            " that the model gets here. Default: list what there is."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Import all that can be imported and is not here.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Look into this folder only: a Hugging Face cache, Ollama's models, or any with GGUF files.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would come, and how much of it be copied.")
    ] = False,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy all, so that nothing is shared with the other program.")
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Take over models of a Hugging Face cache, of Ollama, or of a folder; without a copy where the disk allows it.

    Ctrl-C pauses; the same command goes on.
    """
    folders = [] if folder is None else [str(folder.expanduser().absolute())]

    async def work(client: Client) -> None:
        answer = client.downloader.FindLocalModels(pb.FindLocalModelsRequest(folders=folders))
        found = [response.model async for response in answer]
        if not (names or everything or dry_run):
            _print_found(found, as_json=as_json)
            return
        chosen = _named(found, names) if names else [one for one in found if not (one.problem or one.version)]
        if dry_run:
            for one in chosen:
                one.copy_bytes = one.size_bytes if copy else one.copy_bytes
            _print_plan(chosen, as_json=as_json)
        else:
            await _import(client, chosen, copy=copy, as_json=as_json)

    console.run(ctx, work)


def _named(found: Sequence[pb.LocalModel], names: Sequence[str]) -> list[pb.LocalModel]:
    """Raises SourceNotFound, InvalidReference, UnsupportedFormat."""
    chosen = []
    for name in dict.fromkeys(names):
        fitting = [one for one in found if name in (one.reference, _unpinned(one.reference), one.model_id)]
        if not fitting:
            raise SourceNotFound(f"'{name}' was not found; `lares import` lists what was")
        if len({one.reference for one in fitting}) > 1:
            told = ", ".join(one.reference for one in fitting)
            raise InvalidReference(f"'{name}' may be {told}: say which")
        if fitting[0].problem:
            raise UnsupportedFormat(f"{fitting[0].reference} cannot be imported: {fitting[0].problem}")
        chosen.append(fitting[0])
    return chosen


def _unpinned(reference: str) -> str:
    try:
        return str(replace(ModelRef.parse(reference), revision=None))
    except InvalidReference:  # It has a problem, which will be told.
        return reference


async def _import(client: Client, chosen: Sequence[pb.LocalModel], *, copy: bool, as_json: bool) -> None:
    """One after another; one that fails does not hold up the others."""
    done, failures = [], []
    for one in chosen:
        try:
            download = await client.checked(partial(_pull, one=one, copy=copy, quiet=as_json))
        except LaresError as error:
            if len(chosen) == 1:
                raise
            failures.append(error)
            console.err.print(f"error: {one.reference}: {error}", markup=False)
            continue
        done.append(download)
        if not as_json:
            console.out.print(f"[green]✓[/] {download.model.removeprefix('models/')} is here")
    if as_json:
        console.print_json([console.to_json(download) for download in done])
    elif not chosen:
        console.err.print("nothing is left to import")
    if failures:
        raise typer.Exit(1)


async def _pull(client: Client, one: pb.LocalModel, *, copy: bool, quiet: bool) -> pb.Download:
    options = pb.PullOptions(local_folder=one.folder, copy_local_files=copy)
    return await pull_model(client, one.reference, one.model_id, options, quiet=quiet)


def _print_found(found: Sequence[pb.LocalModel], *, as_json: bool) -> None:
    if as_json:
        console.print_json([console.to_json(one) for one in found])
        return
    console.print_table(
        ("REFERENCE", "SIZE", "WHERE", "HERE"),
        (
            [
                one.reference or "-",
                console.size_text(one.size_bytes) if not one.problem else "-",
                f"{console.enum_text(one, 'place')} {one.folder}",
                _here(one),
            ]
            for one in found
        ),
        empty=NOTHING,
    )


def _here(one: pb.LocalModel) -> str:
    if one.version:
        return ":".join(parse_version_name(one.version))
    return f"no, and cannot be imported: {one.problem}" if one.problem else "no"


def _print_plan(chosen: Sequence[pb.LocalModel], *, as_json: bool) -> None:
    if as_json:
        console.print_json({"dry_run": True, "models": [console.to_json(one) for one in chosen]})
        return
    console.print_table(
        ("REFERENCE", "AS", "SHARED", "COPIED"),
        (
            [
                one.reference,
                one.model_id,
                console.size_text(one.size_bytes - one.copy_bytes),
                console.size_text(one.copy_bytes),
            ]
            for one in chosen
        ),
        empty="nothing is left to import",
    )
