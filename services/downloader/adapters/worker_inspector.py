"""The parent's side of `inspect_worker.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from services.downloader.adapters.inspect_worker import (
    Answer,
    ArchiveKind,
    Found,
    Init,
    Inspect,
    Inspected,
    Request,
    Scan,
    Unpack,
    Unpacked,
    Verify,
)
from services.downloader.adapters.pickle_scan import unscanned
from services.downloader.core.models import Finding, Inspection, LeftOut
from services.downloader.core.paths import check_paths
from services.kit.errors import InternalError, LaresError, WorkerLost
from services.kit.worker import Worker, WorkerSpec

A = TypeVar("A", bound=Answer)

_START_TIMEOUT_S = 60.0
# A scan reads opcodes; what takes longer than this is made to.
_MAX_SCAN_CPU_S: Final = 10
# Whatever a hostile file makes of the worker, it finds no key there.
_NO_SECRETS = dict.fromkeys(("HF_TOKEN", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"), "")


def spec(max_cpu_s: int = Init().max_cpu_s) -> WorkerSpec[Request, Answer]:
    """The child."""
    return WorkerSpec(
        name="inspect",
        target="services.downloader.adapters.inspect_worker:main",
        init=Init(max_cpu_s),
        events=Answer,
        env=_NO_SECRETS,
        ready_timeout_s=_START_TIMEOUT_S,
    )


class WorkerInspector:
    """See `Inspector`. One child process a question: it is over in seconds, and costs nothing in between."""

    async def inspect(self, files: Mapping[str, Path], archives: Sequence[Path] = ()) -> Inspection:
        """What the files are."""
        request = Inspect(
            {path: str(local) for path, local in files.items()}, [str(path) for path in archives]
        )
        answer = await _ask(request, Inspected)
        # What comes out of a worker that has parsed a hostile file is as little to be trusted.
        findings = [Finding.of(each.kind, each.severity, each.path, each.message) for each in answer.findings]
        pickles = [
            LeftOut(each.member, archive, each.member)
            for each in answer.pickles
            if (archive := Path(each.archive)) in archives
        ]
        return Inspection(answer.facts, tuple(findings), tuple(pickles))

    async def scan(self, left_out: LeftOut) -> Finding:
        """What a pickle would do. One that kills its scanner is told as such."""
        request = Scan(left_out.path, str(left_out.local), left_out.member)
        try:
            found = (await _ask(request, Found, max_cpu_s=_MAX_SCAN_CPU_S)).finding
        except WorkerLost:
            return unscanned(left_out.path, "its scanner died of it")
        except LaresError as error:
            return unscanned(left_out.path, error.message)
        return Finding.of(found.kind, found.severity, left_out.path, found.message)

    async def verify(self, signature: Path, keys: Sequence[Path], digests: Mapping[str, str]) -> Finding:
        """Who signed the files."""
        request = Verify(str(signature), [str(key) for key in keys], dict(digests))
        found = (await _ask(request, Found)).finding
        return Finding.of(found.kind, found.severity, found.path, found.message)

    async def unpack(
        self, archives: Sequence[Path], kind: ArchiveKind, target: Path, *, layout_folder: str = ""
    ) -> list[str]:
        """Write the model's files that the archives hold under `target`. Returns their paths."""
        request = Unpack([str(path) for path in archives], kind, layout_folder, str(target))
        paths = (await _ask(request, Unpacked)).paths
        # Checked there too.
        check_paths(paths)
        return paths


async def _ask(request: Request, wanted: type[A], *, max_cpu_s: int = Init().max_cpu_s) -> A:
    worker = await Worker.start(spec(max_cpu_s))
    try:
        async with worker.call(request) as call:
            answer = await anext(call)
    finally:
        await worker.stop()
    if not isinstance(answer, wanted):
        raise InternalError("the inspecting worker answered another question")
    return answer
