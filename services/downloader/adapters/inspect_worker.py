"""The child process that parses what was downloaded: archives, headers, pickles, signatures. Nobody vouches for them.

It has no network to use, no secrets, and capped memory and processor time. It does one job and ends.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import msgspec

from services.downloader.adapters.archive_report import read_member, report_archive
from services.downloader.adapters.pickle_scan import scan_pickle, unscanned
from services.downloader.adapters.unpack import unpack
from services.downloader.adapters.zip_archive import WheelArchive, ZipArchive
from services.downloader.core.inspection import inspect
from services.downloader.core.models import Facts, Finding
from services.kit.errors import FailedPrecondition, InternalError, LaresError, UnsupportedFormat
from services.kit.worker_port import WorkerPort

ArchiveKind = Literal["wheel", "zip"]

_MAX_MEMORY_BYTES: Final = 512 * 1024**2
_MAX_SIGNATURE_BYTES: Final = 16 * 1024**2
_MAX_KEY_BYTES: Final = 1024**2
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
    """Tell what files are. files: path in the model -> where it lies. archives: that they came in."""

    files: dict[str, str]
    archives: list[str]


class Scan(msgspec.Struct, tag=True):
    """Tell what a pickle would do. path: at its source; local: where it lies; with member, in that archive."""

    path: str
    local: str
    member: str


class Verify(msgspec.Struct, tag=True):
    """Tell who signed these files. signature: where it lies; keys: files; digests: sha256 in hex, by path."""

    signature: str
    keys: list[str]
    digests: dict[str, str]


class Unpacked(msgspec.Struct, tag=True):
    """Paths under the target."""

    paths: list[str]


class PickleNamed(msgspec.Struct):
    """One that lies in an archive."""

    archive: str
    member: str


class Inspected(msgspec.Struct, tag=True):
    """As `Inspection`. pickles: of the archives."""

    facts: Facts
    findings: list[Finding]
    pickles: list[PickleNamed]


class Found(msgspec.Struct, tag=True):
    """What a scan or a check of a signature found."""

    finding: Finding


Request = Unpack | Inspect | Scan | Verify
Answer = Unpacked | Inspected | Found


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
            return _inspected(request)
        case Scan():
            return Found(_scanned(request))
        case Verify():
            from services.downloader.adapters.signature_check import check_signature

            keys = [(Path(key).name, _read_key(Path(key))) for key in request.keys]
            with Path(request.signature).open("rb") as file:
                signature = file.read(_MAX_SIGNATURE_BYTES)
            return Found(check_signature(signature, keys, request.digests))


def _inspected(request: Inspect) -> Inspected:
    found = inspect({path: Path(local) for path, local in request.files.items()}, _template_fault)
    facts = found.facts
    pickles = []
    for archive in request.archives:
        license_, members = report_archive(Path(archive))
        # What the weights say of themselves is more than what a package says of itself.
        facts = replace(facts, license=facts.license or license_)
        pickles += [PickleNamed(archive, member) for member in members]
    return Inspected(facts, list(found.findings), pickles)


def _template_fault(template: str) -> str:
    # Late: most models that come in wheels or zips are made to hear, or to embed, and have none.
    from services.downloader.adapters.template_check import template_fault

    return template_fault(template)


def _scanned(request: Scan) -> Finding:
    if not request.member:
        with Path(request.local).open("rb") as file:
            return scan_pickle(request.path, file)
    member = read_member(Path(request.local), request.member)
    if member is None:
        return unscanned(request.path, "it is too large for that inside of an archive")
    return scan_pickle(request.path, member)


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as error:
        raise FailedPrecondition(
            f"downloader.trusted_keys: {path.name} cannot be read: {error.strerror}"
        ) from error


def _cap(max_cpu_s: int) -> None:
    # Windows has no such limits; there the caps of the parsers have to do.
    if sys.platform != "win32":
        import resource

        for kind, cap in ((resource.RLIMIT_AS, _MAX_MEMORY_BYTES), (resource.RLIMIT_CPU, max_cpu_s)):
            _, hard = resource.getrlimit(kind)
            cap = cap if hard == resource.RLIM_INFINITY else min(cap, hard)
            resource.setrlimit(kind, (cap, hard))
