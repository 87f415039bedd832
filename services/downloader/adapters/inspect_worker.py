"""The child process that parses what was downloaded: archives and headers, which nobody vouches for.

It has no network to use, no secrets, and capped memory and processor time. It does one job and ends.
"""

import sys
from pathlib import Path
from typing import Final, Literal

import msgspec

from services.downloader.adapters.unpack import unpack
from services.downloader.adapters.zip_archive import WheelArchive, ZipArchive
from services.downloader.core.inspection import inspect
from services.kit.errors import InternalError, LaresError, UnsupportedFormat
from services.kit.worker_port import WorkerPort

ArchiveKind = Literal["wheel", "zip"]

_MAX_MEMORY_BYTES: Final = 512 * 1024**2
_ARCHIVES: Final[dict[ArchiveKind, type[ZipArchive]]] = {"wheel": WheelArchive, "zip": ZipArchive}


class Init(msgspec.Struct):
    """max_cpu_s: processor time after which the kernel ends the worker."""

    max_cpu_s: int = 600


class Unpack(msgspec.Struct, tag=True):
    """Unpack archives into a folder, and tell which files that makes."""

    archives: list[str]
    kind: ArchiveKind
    layout_folder: str
    target: str


class Inspect(msgspec.Struct, tag=True):
    """Tell what files are. files: path in the model -> where it lies."""

    files: dict[str, str]


class Unpacked(msgspec.Struct, tag=True):
    """Paths under the target."""

    paths: list[str]


class Inspected(msgspec.Struct, tag=True):
    """The fields of `Facts`, enums by number."""

    kind: int
    format: int
    capabilities: list[int]
    architecture: str
    num_parameters: int
    context_length: int
    quantization: str


Request = Unpack | Inspect
Answer = Unpacked | Inspected


def main(init: Init, port: WorkerPort[Request, Answer]) -> None:
    """Answer requests until the parent is done."""
    _cap(init.max_cpu_s)
    port.ready()
    while not port.closed:
        for incoming in port.receive():
            if incoming.message is None:
                continue
            try:
                answer = _answer(incoming.message)
            except LaresError as error:
                port.fail(incoming.call_id, error)
            except (MemoryError, RecursionError):
                why = "the files take more memory to read than any real model does"
                port.fail(incoming.call_id, UnsupportedFormat(why))
            except OSError as error:
                why = f"a downloaded file cannot be read: {error.strerror}"
                port.fail(incoming.call_id, InternalError(why))
            else:
                port.post(events=[(incoming.call_id, answer)], finished=[incoming.call_id])


def _answer(request: Request) -> Answer:
    match request:
        case Unpack():
            archives = [Path(archive) for archive in request.archives]
            opener = _ARCHIVES[request.kind]
            return Unpacked(unpack(archives, opener, request.layout_folder, Path(request.target)))
        case Inspect():
            facts = inspect({path: Path(local) for path, local in request.files.items()})
            return Inspected(
                kind=facts.kind,
                format=facts.format,
                capabilities=[int(capability) for capability in facts.capabilities],
                architecture=facts.architecture,
                num_parameters=facts.num_parameters,
                context_length=facts.context_length,
                quantization=facts.quantization,
            )


def _cap(max_cpu_s: int) -> None:
    # Windows has no such limits; there the caps of the parsers have to do.
    if sys.platform != "win32":
        import resource

        for kind, cap in ((resource.RLIMIT_AS, _MAX_MEMORY_BYTES), (resource.RLIMIT_CPU, max_cpu_s)):
            _, hard = resource.getrlimit(kind)
            cap = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
            resource.setrlimit(kind, (cap, hard))
