"""`lares ensure`, `updates`, `rollback`: which versions are here, and which of them answer."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Annotated

import typer
from google.protobuf.field_mask_pb2 import FieldMask

from cli import console
from cli.client import Client
from cli.models import all_versions
from cli.pulling import follow
from lares.downloader.v1 import downloader_pb2 as pb
from lares.registry.v1 import registry_pb2
from services.kit.errors import FailedPrecondition, InvalidArgument, LaresError, VersionNotFound
from services.kit.names import ServedName, model_name, parse_version_name


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    for command in (ensure, updates, rollback):
        app.command()(command)


def ensure(
    ctx: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what is here and what is not.")
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Have all models here that the setting `downloader.required` names. Exit code 1 if one is not in the end.

    Ctrl-C pauses; the same command goes on from there.
    """

    async def work(client: Client) -> None:
        found = await client.downloader.EnsureModels(pb.EnsureModelsRequest(dry_run=dry_run))
        if not dry_run:
            await _follow(client, (model.download for model in found.models), quiet=as_json)
            found = await client.downloader.EnsureModels(pb.EnsureModelsRequest(dry_run=True))
        if as_json:
            console.print_json({"dry_run": dry_run, **console.to_json(found)})
        else:
            console.print_table(
                ("MODEL", "STATE", "VERSION", "SOURCE"),
                (
                    [
                        model.model.removeprefix("models/"),
                        console.enum_text(model, "state"),
                        _version_id(model.version),
                        model.source,
                    ]
                    for model in found.models
                ),
                empty="nothing is required: set downloader.required",
            )
        if any(model.state != pb.REQUIRED_STATE_PRESENT for model in found.models):
            raise typer.Exit(1)

    console.run(ctx, work)


def updates(
    ctx: typer.Context,
    models: Annotated[list[str] | None, typer.Argument(help="Only these models. Default: all.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Ask the models' sources now. Without it: what the last check found."),
    ] = False,
    pull: Annotated[
        bool,
        typer.Option("--pull", help="Ask, and download what is newer: it answers from then on."),
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Say whether the sources of models have newer versions. A version that was rolled back from is held back."""

    async def work(client: Client) -> None:
        names = [model_name(ServedName.parse(model, field="models").model_id) for model in models or []]
        if check or pull:
            request = pb.CheckUpdatesRequest(models=names, pull=pull)
            found = list((await client.downloader.CheckUpdates(request)).updates)
        else:
            found = [each async for each in _last_found(client) if not names or each.model in names]
        if as_json:
            console.print_json([console.to_json(update) for update in found])
        else:
            _print_updates(found)
        if pull and not await _follow(client, (update.download for update in found), quiet=as_json):
            raise typer.Exit(1)

    console.run(ctx, work)


def rollback(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name.")],
    to: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="Default: the version before the one that answers.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would change.")] = False,
    as_json: console.Json = False,
) -> None:
    """Have another version of a model answer to its name, from the next request on. Nothing is downloaded or deleted.

    What is in memory of the version before ends with its last request.
    """

    async def work(client: Client) -> None:
        served = ServedName.parse(model)
        if served.version_id is not None:
            raise InvalidArgument.at("model", "must be a model's name alone; --to names the version")
        name = model_name(served.model_id)
        found = (await client.registry.GetModel(registry_pb2.GetModelRequest(name=name))).model
        versions = [version async for version in all_versions(client, name)]
        target = rollback_target(found, versions, to)
        if not dry_run:
            # Only what was looked at is changed: a pull that ends now may have made another version answer.
            changed = registry_pb2.Model(name=name, default_version=target.name, etag=found.etag)
            mask = FieldMask(paths=["default_version"])
            await client.registry.UpdateModel(
                registry_pb2.UpdateModelRequest(model=changed, update_mask=mask)
            )
        if as_json:
            said = {"model": name, "from_version": found.default_version, "to_version": target.name}
            console.print_json({"dry_run": dry_run, **said})
            return
        console.out.print(
            f"{served.model_id}: {_version_id(found.default_version)} -> {_version_id(target.name)}"
            f"{', if it is done' if dry_run else '; the next request is answered by it'}",
            markup=False,
        )

    console.run(ctx, work)


def rollback_target(
    model: registry_pb2.Model, versions: Sequence[registry_pb2.Version], to: str
) -> registry_pb2.Version:
    """The version to go back to. versions: oldest first.

    Raises VersionNotFound, InvalidArgument, FailedPrecondition.
    """
    model_id = model.name.removeprefix("models/")
    weights = [version for version in versions if version.kind == registry_pb2.VERSION_KIND_WEIGHTS]
    if not to:
        names = [version.name for version in weights]
        before = weights[: names.index(model.default_version)] if model.default_version in names else []
        usable = [version for version in before if version.state == registry_pb2.VERSION_STATE_AVAILABLE]
        if not usable:
            raise FailedPrecondition(
                f"{model_id} has no version before {_version_id(model.default_version)} that could answer;"
                " `lares updates --check` tells what its source has"
            )
        return usable[-1]
    chosen = [version for version in versions if _version_id(version.name) == to]
    if not chosen:
        raise VersionNotFound.named(model_id, to)
    [version] = chosen
    if version.name == model.default_version:
        raise FailedPrecondition(f"{to} is the version of {model_id} that answers already")
    if version.kind != registry_pb2.VERSION_KIND_WEIGHTS:
        raise InvalidArgument.at("to", f"{to} is an adapter: it is asked for as {model_id}:{to}")
    if version.state != registry_pb2.VERSION_STATE_AVAILABLE:
        raise FailedPrecondition(f"{to} is quarantined ({version.state_reason}): it cannot answer")
    return version


async def _follow(client: Client, names: Iterable[str], *, quiet: bool) -> bool:
    """Wait for downloads, each with its progress. Returns whether all succeeded; why one did not is told."""
    all_succeeded = True
    for name in filter(None, names):
        download = (await client.downloader.GetDownload(pb.GetDownloadRequest(name=name))).download
        try:
            await follow(client, download, quiet=quiet)
        except LaresError as error:
            all_succeeded = False
            console.err.print(f"{download.source}: {error}", markup=False)
    return all_succeeded


async def _last_found(client: Client) -> AsyncIterator[pb.Update]:
    request = pb.ListUpdatesRequest(page_size=1000)
    while True:
        page = await client.downloader.ListUpdates(request)
        for update in page.updates:
            yield update
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _print_updates(found: Sequence[pb.Update]) -> None:
    console.print_table(
        ("MODEL", "VERSION", "CHECKED", "FOUND", "LATEST, OR WHY"),
        (
            [
                update.model.removeprefix("models/"),
                _version_id(update.version),
                f"{update.check_time.ToDatetime():%Y-%m-%d %H:%M}Z",
                console.enum_text(update, "verdict"),
                update.reason or _latest_text(update),
            ]
            for update in found
        ),
        empty="nothing was checked yet: `lares updates --check` asks the models' sources",
    )


def _latest_text(update: pb.Update) -> str:
    if update.verdict != pb.UPDATE_VERDICT_AVAILABLE:
        return ""
    size = f" ({console.size_text(update.download_bytes)})" if update.HasField("download_bytes") else ""
    return f"{update.latest_source}{size}"


def _version_id(name: str) -> str:
    return parse_version_name(name)[1] if name else ""
