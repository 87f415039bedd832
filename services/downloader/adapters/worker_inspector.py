"""The parent's side of `inspect_worker.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from services.downloader.adapters.inspect_worker import (
    Answer,
    ArchiveKind,
    Init,
    Inspect,
    Inspected,
    Request,
    Unpack,
    Unpacked,
)
from services.downloader.core.models import Capability, Facts, Format, ModelKind
from services.downloader.core.paths import check_paths
from services.kit.errors import InternalError
from services.kit.worker import Worker, WorkerSpec

_START_TIMEOUT_S = 60.0
# Whatever a hostile file makes of the worker, it finds no key there.
_NO_SECRETS = dict.fromkeys(("HF_TOKEN", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"), "")

SPEC: Final[WorkerSpec[Request, Answer]] = WorkerSpec(
    name="inspect",
    target="services.downloader.adapters.inspect_worker:main",
    init=Init(),
    events=Answer,
    env=_NO_SECRETS,
    ready_timeout_s=_START_TIMEOUT_S,
)
"""The child."""


class WorkerInspector:
    """See `Inspector`. One child process a question: it is over in seconds, and costs nothing in between."""

    async def inspect(self, files: Mapping[str, Path]) -> Facts:
        """What the files are."""
        answer = await _ask(Inspect({path: str(local) for path, local in files.items()}))
        if not isinstance(answer, Inspected):
            raise InternalError("the inspecting worker answered another question")
        return Facts(
            kind=ModelKind(answer.kind),
            format=Format(answer.format),
            capabilities=tuple(Capability(number) for number in answer.capabilities),
            architecture=answer.architecture,
            num_parameters=answer.num_parameters,
            context_length=answer.context_length,
            quantization=answer.quantization,
        )

    async def unpack(
        self, archives: Sequence[Path], kind: ArchiveKind, target: Path, *, layout_folder: str = ""
    ) -> list[str]:
        """Write the model's files that the archives hold under `target`. Returns their paths."""
        answer = await _ask(Unpack([str(path) for path in archives], kind, layout_folder, str(target)))
        if not isinstance(answer, Unpacked):
            raise InternalError("the inspecting worker answered another question")
        # Checked there too; what comes out of a worker that has parsed a hostile file is as little to be trusted.
        check_paths(answer.paths)
        return answer.paths


async def _ask(request: Request) -> Answer:
    worker = await Worker.start(SPEC)
    try:
        async with worker.call(request) as call:
            return await anext(call)
    finally:
        await worker.stop()
