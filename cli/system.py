"""`lares status`, `settings`, `doctor`: how things stand, and what this machine has."""

import asyncio
import importlib
import importlib.util
import os
import platform
import shutil
import socket
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import grpc
import typer
from grpc_health.v1 import health_pb2

from cli import console
from cli.client import Client
from services.kit.address import Address
from services.kit.errors import InvalidArgument
from services.kit.settings import SERVICES, ServiceSettings, Settings, SettingsModel, describe, load_settings

PROBE_TIMEOUT_S = 5.0

HEAVY_PACKAGES = {
    "registry": ("sqlalchemy", "alembic"),
    "downloader": ("sqlalchemy", "huggingface_hub", "httpx2"),
    "inference": ("torch", "transformers", "safetensors", "gguf", "peft"),
    "speech": ("vosk", "faster_whisper"),
    "trainer": ("torch", "transformers", "peft"),
    "gateway": ("starlette", "uvicorn"),
}

GIB = 1024**3


def register(app: typer.Typer) -> None:
    """Put the commands of this room on the command line."""
    for command in (status, settings, doctor):
        app.command()(command)


def status(
    ctx: typer.Context,
    services: Annotated[list[str] | None, typer.Argument(help="Only these: registry, gateway, ...")] = None,
    as_json: console.Json = False,
) -> None:
    """Say which services serve. Exit code 1 if one of them does not."""
    known = (*SERVICES, "gateway")
    wanted = services or list(known)

    async def work(client: Client) -> None:
        if unknown := set(wanted) - set(known):
            raise InvalidArgument.at(
                "services", f"{', '.join(sorted(unknown))}: must be of {', '.join(known)}"
            )
        states = await asyncio.gather(*(_state(client, service) for service in wanted))
        rows = list(zip(wanted, states, strict=True))
        if as_json:
            console.print_json(
                [{"service": s, "address": _address(client, s), "state": state} for s, state in rows]
            )
        else:
            console.print_table(
                ("SERVICE", "ADDRESS", "STATE"),
                ([s, _address(client, s), state] for s, state in rows),
                empty="",
            )
        if any(state != "serving" for state in states):
            raise typer.Exit(1)

    console.run(ctx, work)


def _address(client: Client, service: str) -> str:
    return str(client.settings.http) if service == "gateway" else client.settings.endpoint(service)


async def _state(client: Client, service: str) -> str:
    if service == "gateway":
        return await asyncio.to_thread(_gateway_state, client.settings.http)
    request = health_pb2.HealthCheckRequest(service=f"lares.{service}.v1.{service.capitalize()}Service")
    try:
        answer = await client.health(service).Check(request, timeout=PROBE_TIMEOUT_S)
    except grpc.RpcError as error:
        return "not here" if error.code() is grpc.StatusCode.NOT_FOUND else "unreachable"
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status).lower().replace("_", " ")


def _gateway_state(address: Address) -> str:
    try:
        with urllib.request.urlopen(f"http://{address.reachable}/readyz", timeout=PROBE_TIMEOUT_S):
            return "serving"
    except urllib.error.HTTPError:
        return "not serving"
    except OSError:
        return "unreachable"


def settings(ctx: typer.Context, as_json: console.Json = False) -> None:
    """List every setting: its value, where that comes from, and what it does."""
    with console.exit_code():
        rows = [row for cls in settings_classes() for row in describe(cls, load_settings(cls, ctx.obj))]
        if as_json:
            console.print_json([asdict(row) for row in rows])
            return
        console.print_table(
            ("ENVIRONMENT", "VALUE", "FROM", "WHAT"),
            (
                [
                    row.env,
                    row.value or "-",
                    row.alias if row.source == "alias" else row.source,
                    row.description,
                ]
                for row in rows
            ),
            empty="",
        )


def settings_classes() -> Iterator[type[SettingsModel]]:
    """The shared settings, then those of each service. Imports no service: settings stand in a module of their own."""
    yield Settings
    for module in (
        *(f"services.{service}.settings" for service in SERVICES),
        "gateway.settings",
        "cli.settings",
    ):
        found = importlib.import_module(module)
        for value in vars(found).values():
            if isinstance(value, type) and issubclass(value, ServiceSettings) and value.__module__ == module:
                yield value


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that this machine has or lacks."""

    name: str
    verdict: Literal["ok", "note", "bad"]
    found: str
    advice: str = ""


def doctor(ctx: typer.Context, as_json: console.Json = False) -> None:
    """Say what this machine has and lacks. Needs no running Lares; exit code 1 if something must be mended."""
    with console.exit_code():
        findings = list(_examine(ctx.obj.settings()))
    if as_json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        marks = {"ok": "[green]✓[/]", "note": "[yellow]![/]", "bad": "[red]✗[/]"}
        for finding in findings:
            advice = f"  [dim]{finding.advice}[/]" if finding.advice else ""
            console.out.print(f"{marks[finding.verdict]} [bold]{finding.name:<10}[/] {finding.found}{advice}")
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


def _examine(settings: Settings) -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    yield from _hardware()
    yield from _home(settings.home)
    yield Finding("sqlite", "ok", sqlite3.sqlite_version)
    for service, packages in HEAVY_PACKAGES.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            yield Finding(
                service,
                "note",
                f"lacks {', '.join(missing)}",
                f"pip install 'lares[{service}]' to serve it here",
            )
        else:
            yield Finding(service, "ok", "has its packages")
    yield _address_finding("http", settings.http)
    yield _address_finding("grpc", settings.grpc)


def _hardware() -> Iterator[Finding]:
    probe = importlib.import_module("services.inference.adapters.hardware").probe_hardware()
    fast = {"avx512_bf16", "amx_bf16", "neon"} & set(probe.cpu_features)
    yield Finding(
        "cpu",
        "ok" if fast else "note",
        f"{probe.num_cpus} cores, {probe.cpu_model}, {' '.join(probe.cpu_features) or 'no vector features known'}",
        "" if fast else "no bfloat16 arithmetic: models run in float32",
    )
    enough = probe.memory.available_bytes >= 2 * GIB
    yield Finding(
        "memory",
        "ok" if enough else "note",
        f"{probe.memory.available_bytes / GIB:.1f} of {probe.memory.total_bytes / GIB:.1f} GiB free",
        "" if enough else "the starter model wants 2 GiB",
    )
    for gpu in probe.gpus:
        yield Finding(
            f"gpu {gpu.index}", "ok", f"{gpu.model}, {gpu.memory.available_bytes / GIB:.1f} GiB free"
        )
    if not probe.gpus:
        yield Finding("gpu", "note", "none that NVIDIA's driver knows", "models run on the CPU")


def _home(home: Path) -> Iterator[Finding]:
    at = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(at).free
    yield Finding(
        "disk",
        "ok" if free >= 2 * GIB else "bad",
        f"{free / GIB:.1f} GiB free for {home}",
        "" if free >= 2 * GIB else "free some space, or set LARES_HOME to a folder on another disk",
    )
    if not _writable(at):
        yield Finding("home", "bad", f"{at} cannot be written", "set LARES_HOME to a folder that you own")


def _writable(folder: Path) -> bool:
    probe = folder / f".lares-doctor-{os.getpid()}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError:
        return False
    return True


def _address_finding(name: str, address: Address) -> Finding:
    """Whether an address can be listened on; somebody there already may well be Lares itself."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.settimeout(PROBE_TIMEOUT_S)
        try:
            probe.connect((address.host, address.port))
        except OSError:
            return Finding(name, "ok", f"{address} is free")
    return Finding(
        name, "note", f"{address} is taken", "by Lares if `lares status` says so; else set another"
    )
