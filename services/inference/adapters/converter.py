"""Versions in the form that is loaded: GGUF as safetensors, and those in fewer bits.

Each form is made once, in a process of its own, and kept in the store as an artifact of the version.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from lares.registry.v1 import registry_pb2 as pb
from services.inference.adapters.downloader_store import DownloaderStore
from services.inference.adapters.messages import (
    Converted,
    ConvertInit,
    LoadProgress,
    Quantized,
    QuantizeInit,
)
from services.inference.adapters.registry_catalog import RegistryCatalog
from services.inference.core.models import Format, ModelVersion
from services.kit.errors import LaresError, UnsupportedFormat
from services.kit.worker import Worker, WorkerSpec

ARTIFACT_ID: Final = "safetensors"

_CONVERT: Final = "services.inference.adapters.convert_worker:main"
_QUANTIZE: Final = "services.inference.adapters.quantize_worker:main"

# Of the progress where a GGUF file becomes safetensors, and those become fewer bits.
_CONVERT_SHARE: Final = 0.5

_log = structlog.get_logger()

Made = TypeVar("Made", Converted, Quantized)


class Converter:
    """Gives folders of safetensors.

    scratch: a folder of its own; what an earlier process left there is dropped.
    """

    def __init__(self, store: DownloaderStore, catalog: RegistryCatalog, scratch: Path) -> None:
        self._store = store
        self._catalog = catalog
        self._scratch = scratch
        # Keys of versions, and artifacts of theirs that are younger than the records we hold.
        self._made: set[tuple[str, str]] = set()
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    def prepare(self) -> None:
        """Make the scratch folder, empty."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)

    def needs_conversion(self, version: ModelVersion) -> bool:
        """Whether `folder` would convert, which takes minutes."""
        return version.format is Format.GGUF and not self._has(version, ARTIFACT_ID)

    @contextlib.asynccontextmanager
    async def folder(
        self, version: ModelVersion, on_progress: Callable[[float], None]
    ) -> AsyncIterator[Path]:
        """A folder with the version as safetensors.

        on_progress is told the share of a conversion, if there must be one.
        """
        match version.format:
            case Format.SAFETENSORS:
                artifact_id = ""
            case Format.GGUF:
                artifact_id = ARTIFACT_ID
                if self.needs_conversion(version):
                    await self._convert(version, on_progress)
            case _:
                raise UnsupportedFormat(
                    f"{version.name} is neither safetensors nor GGUF, and nothing else is loaded"
                )
        async with self._store.lease(version.name, artifact_id) as folder:
            yield folder

    @contextlib.asynccontextmanager
    async def quantized_folder(
        self, version: ModelVersion, scheme: str, device: str, on_progress: Callable[[float], None]
    ) -> AsyncIterator[Path]:
        """A folder with the version in fewer bits; where the store cannot keep them, one with its own weights.

        scheme: `int8`, `int4`, `nf4`. Raises UnsupportedFormat for a family that is not quantized.
        """
        if not self._has(version, scheme):
            lock = self._locks.setdefault((version.key, scheme), asyncio.Lock())
            async with lock:
                if not self._has(version, scheme):
                    await self._quantize(version, scheme, device, on_progress)
        kept = scheme if self._has(version, scheme) else ARTIFACT_ID if version.format is Format.GGUF else ""
        async with self._store.lease(version.name, kept) as folder:
            yield folder

    def _has(self, version: ModelVersion, artifact_id: str) -> bool:
        return artifact_id in version.artifact_ids or (version.key, artifact_id) in self._made

    async def _quantize(
        self, version: ModelVersion, scheme: str, device: str, on_progress: Callable[[float], None]
    ) -> None:
        begun = _CONVERT_SHARE if self.needs_conversion(version) else 0.0
        target = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._scratch))
        try:
            async with self.folder(version, lambda share: on_progress(share * begun)) as source:
                init = QuantizeInit(str(source), str(target), scheme, device)
                made = await _run(
                    _QUANTIZE, init, Quantized, lambda share: on_progress(begun + share * (1 - begun))
                )
            artifact = pb.Artifact(
                artifact_id=scheme,
                format=pb.FORMAT_SAFETENSORS,
                quantization=scheme,
                producer=made.producer,
                perplexity=pb.Perplexity(
                    value=made.perplexity,
                    baseline=made.baseline,
                    text_digest=made.text_digest,
                    num_tokens=made.num_tokens,
                ),
            )
            try:
                await self._keep(version, artifact, target, made.paths)
            except LaresError as error:
                _log.warning("quantized at every load", model=version.name, scheme=scheme, why=error.message)
        finally:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)

    async def _keep(
        self, version: ModelVersion, artifact: pb.Artifact, folder: Path, paths: Sequence[str]
    ) -> None:
        artifact.files.extend([await self._store.write(path, folder / path) for path in paths])
        # Recorded last: until then nobody knows of what may be half done.
        await self._catalog.record_artifact(version.name, artifact)
        self._made.add((version.key, artifact.artifact_id))

    async def _convert(self, version: ModelVersion, on_progress: Callable[[float], None]) -> None:
        target = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._scratch))
        try:
            async with self._store.lease(version.name) as source:
                made = await _run(_CONVERT, ConvertInit(str(source), str(target)), Converted, on_progress)
            artifact = pb.Artifact(
                artifact_id=ARTIFACT_ID,
                format=pb.FORMAT_SAFETENSORS,
                quantization="bf16",
                producer=made.producer,
            )
            await self._keep(version, artifact, target, made.paths)
        finally:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)


async def _run(
    target: str, init: ConvertInit | QuantizeInit, made_type: type[Made], on_progress: Callable[[float], None]
) -> Made:
    """One job in a process of its own, which ends with it."""

    def tell(progress: LoadProgress) -> None:
        on_progress(progress.share)

    spec: WorkerSpec[Any, Made] = WorkerSpec(
        name="convert",
        target=target,
        init=init,
        events=made_type,
        ready=made_type,
        progress=LoadProgress,
        env={"TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        ready_timeout_s=3600.0,
    )
    worker = await Worker.start(spec, on_progress=tell)
    try:
        made = worker.ready_info
        assert isinstance(made, made_type)
        return made
    finally:
        await worker.stop()
