"""GGUF versions as safetensors: converted once, kept in the store as an artifact of the version."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from lares.registry.v1 import registry_pb2 as pb
from services.inference.adapters.downloader_store import DownloaderStore
from services.inference.adapters.messages import Converted, ConvertInit, LoadProgress
from services.inference.adapters.registry_catalog import RegistryCatalog
from services.inference.core.models import Format, ModelVersion
from services.kit.errors import UnsupportedFormat
from services.kit.worker import Worker, WorkerSpec

ARTIFACT_ID: Final = "safetensors"

_TARGET: Final = "services.inference.adapters.convert_worker:main"


class Converter:
    """Gives folders of safetensors.

    scratch: a folder of its own; what an earlier process left there is dropped.
    """

    def __init__(self, store: DownloaderStore, catalog: RegistryCatalog, scratch: Path) -> None:
        self._store = store
        self._catalog = catalog
        self._scratch = scratch
        self._converted: set[str] = (
            set()
        )  # Keys of versions whose records we hold are older than their artifact.

    def prepare(self) -> None:
        """Make the scratch folder, empty."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)

    def needs_conversion(self, version: ModelVersion) -> bool:
        """Whether `folder` would convert, which takes minutes."""
        is_converted = ARTIFACT_ID in version.artifact_ids or version.key in self._converted
        return version.format is Format.GGUF and not is_converted

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

    async def _convert(self, version: ModelVersion, on_progress: Callable[[float], None]) -> None:
        target = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=self._scratch))
        try:
            async with self._store.lease(version.name) as source:
                made = await _run(ConvertInit(str(source), str(target)), on_progress)
            files = [await self._store.write(path, target / path) for path in made.paths]
            # Recorded last: until then nobody knows of a conversion that may be half done.
            artifact = pb.Artifact(
                artifact_id=ARTIFACT_ID,
                format=pb.FORMAT_SAFETENSORS,
                quantization="bf16",
                files=files,
                producer=made.producer,
            )
            await self._catalog.record_artifact(version.name, artifact)
            self._converted.add(version.key)
        finally:
            await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)


async def _run(init: ConvertInit, on_progress: Callable[[float], None]) -> Converted:
    """One conversion in a process of its own, which ends with it."""

    def tell(progress: LoadProgress) -> None:
        on_progress(progress.share)

    spec: WorkerSpec[ConvertInit, Converted] = WorkerSpec(
        name="convert",
        target=_TARGET,
        init=init,
        events=Converted,
        ready=Converted,
        progress=LoadProgress,
        env={"TQDM_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        ready_timeout_s=3600.0,
    )
    worker = await Worker.start(spec, on_progress=tell)
    try:
        made = worker.ready_info
        assert isinstance(made, Converted)
        return made
    finally:
        await worker.stop()
