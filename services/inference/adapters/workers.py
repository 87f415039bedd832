"""Workers as the core sees them: processes of the kit's harness with a model in each."""

import array
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from services.inference.adapters.converter import Converter
from services.inference.adapters.downloader_store import DownloaderStore
from services.inference.adapters.estimates import Estimates
from services.inference.adapters.messages import (
    DropAdapter,
    Embed,
    Embedded,
    EmbedderInit,
    EmbedInput,
    EngineEvent,
    EngineInit,
    EngineRequest,
    Generate,
    LoadAdapter,
    Loaded,
    LoadProgress,
    Rerank,
    Reranked,
    Stats,
    Step,
    WatchStats,
)
from services.inference.core.events import LoopStats, Update
from services.inference.core.memory import MemoryEstimate, MemoryPlan
from services.inference.core.models import Format, ModelKind, ModelVersion, ResolvedModel, WorkerFacts
from services.inference.core.ports import Embeddings, EmbedItem, ModelWorker, Relevances, WorkerRequest
from services.kit.errors import LaresError, UnsupportedFormat, WorkerLost
from services.kit.worker import Worker, WorkerSpec

# A conversion takes the first part of a load's progress, where one is needed.
_CONVERSION_SHARE: Final = 0.7

WORKER_ENVIRONMENT: Final = {
    "TQDM_DISABLE": "1",
    # Threads that sleep at every barrier make a step twice as slow, and threads that spin without end take a busy
    # machine's cores from those who have work: they spin for some microseconds, then sleep.
    "GOMP_SPINCOUNT": "10000",
    # Activations of a long prompt are some megabytes: given back to the system after each use, they would cost a page
    # fault for every 4 KiB, as much as their computation.
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    # Weights on huge pages: a token alone, which reads all of them, takes 4% less.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    # oneDNN, and torch's layer over it, keep the code that they made for each shape of a product, 1,024 of them each:
    # with prompts of all lengths that is a gigabyte. These many are those of the last steps, and no step is slower.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}


class ProcessWorkerFactory:
    """Implements the core's WorkerFactory."""

    def __init__(
        self,
        converter: Converter,
        store: DownloaderStore,
        estimates: Estimates,
        *,
        max_sequences: int,
        max_batch_tokens: int,
        load_timeout_s: float,
        step_timeout_s: float,
        cuda_graphs: bool,
        uses_mps: bool = False,
    ) -> None:
        self._converter = converter
        self._store = store
        self._estimates = estimates
        self._max_sequences = max_sequences
        self._max_batch_tokens = max_batch_tokens
        self._load_timeout_s = load_timeout_s
        self._step_timeout_s = step_timeout_s
        self._cuda_graphs = cuda_graphs
        self._uses_mps = uses_mps

    async def estimate(self, model: ResolvedModel) -> Sequence[MemoryEstimate]:
        """By the headers of the files, or by the record where there are none yet."""
        return await self._estimates.of(model)

    async def start(
        self, model: ResolvedModel, plan: MemoryPlan, on_progress: Callable[[float], None]
    ) -> ModelWorker:
        """Convert if need be, then load in a new process.

        The files stay leased as long as the worker lives: it may read of them what it does not hold in memory.
        """
        loaded_from = 0.0

        def converting(share: float) -> None:
            nonlocal loaded_from
            loaded_from = _CONVERSION_SHARE
            on_progress(share * _CONVERSION_SHARE)

        def loading(progress: LoadProgress) -> None:
            on_progress(loaded_from + progress.share * (1.0 - loaded_from))

        async with contextlib.AsyncExitStack() as held:
            folder = await held.enter_async_context(self._folder(model, plan, converting))
            worker = await Worker.start(self._spec(model, plan, str(folder)), on_progress=loading)
            return ProcessModelWorker(worker, self._store, held.pop_all())

    def _folder(
        self, model: ResolvedModel, plan: MemoryPlan, on_progress: Callable[[float], None]
    ) -> contextlib.AbstractAsyncContextManager[Path]:
        """In the form that was planned."""
        weight_type = plan.estimate.weight_type
        if weight_type not in ("int8", "int4"):
            return self._converter.folder(model.version, on_progress)
        # Cards multiply with other four bits than processors.
        scheme = "nf4" if weight_type == "int4" and plan.device.startswith("cuda") else weight_type
        return self._converter.quantized_folder(model.version, scheme, plan.device, on_progress)

    def _spec(self, model: ResolvedModel, plan: MemoryPlan, folder: str) -> WorkerSpec[Any, Any]:
        events: Any
        init: EmbedderInit | EngineInit
        if model.kind in (ModelKind.EMBEDDING, ModelKind.RERANKING):
            target, events = "services.inference.adapters.embedding_worker:main", Embedded | Reranked
            init = EmbedderInit(folder, plan.device, reranks=model.kind is ModelKind.RERANKING)
        else:
            target, events = "services.inference.adapters.engine_worker:main", EngineEvent
            init = EngineInit(
                folder=folder,
                # An Apple card shares the machine's memory, so that memory is planned as if there were none.
                device="mps" if self._uses_mps else plan.device,
                max_sequences=self._max_sequences,
                max_batch_tokens=self._max_batch_tokens,
                kv_bytes=plan.kv_bytes,
                cuda_graphs=self._cuda_graphs,
                weight_type=plan.estimate.weight_type,
            )
        return WorkerSpec(
            name=model.name,
            target=target,
            init=init,
            events=events,
            ready=Loaded,
            progress=LoadProgress,
            env=WORKER_ENVIRONMENT,
            ready_timeout_s=self._load_timeout_s,
            max_work_s=self._step_timeout_s,
        )


class ProcessModelWorker:
    """Implements the core's ModelWorker over a live process."""

    def __init__(
        self, worker: Worker[Any, Any], store: DownloaderStore, held: contextlib.AsyncExitStack
    ) -> None:
        """held: what is closed when the worker has ended."""
        self._worker = worker
        self._store = store
        self._holding = asyncio.create_task(self._hold(held))
        self._process = _process(worker.pid)
        loaded = worker.ready_info
        assert isinstance(loaded, Loaded)
        self.facts = WorkerFacts(loaded.device, loaded.dtype, loaded.context_length, loaded.note)
        self.card_bytes = loaded.card_bytes
        self.stats: LoopStats | None = None
        if worker.spec.events == EngineEvent:
            self._watching = asyncio.create_task(self._watch_stats())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._worker.pid

    def memory_bytes(self) -> int:
        """Its resident set now; 0 if it is gone."""
        try:
            return int(self._process.memory_info().rss) if self._process is not None else 0
        except psutil.Error:
            return 0

    @contextlib.asynccontextmanager
    async def generate(self, request: WorkerRequest) -> AsyncIterator[AsyncIterator[Update]]:
        """Updates, one a step."""
        message = Generate(
            prompt=request.prompt,
            sampling=request.sampling,
            stop=request.stop,
            output=request.output,
            seed=request.seed,
            adapter=request.adapter,
            cache_salt=request.cache_salt,
            priority=request.priority,
            scores_prompt=request.scores_prompt,
        )
        async with self._worker.call(message) as call:
            yield _updates(call)

    async def embed(self, inputs: Sequence[EmbedItem], *, dimensions: int, truncate: bool) -> Embeddings:
        """Vectors."""
        message = Embed(tuple(EmbedInput(item.text, item.token_ids) for item in inputs), dimensions, truncate)
        return _embeddings(await self._answer(message))

    async def rerank(self, query: str, documents: Sequence[str], *, truncate: bool) -> Relevances:
        """Scores."""
        reranked = await self._answer(Rerank(query, tuple(documents), truncate))
        return Relevances(reranked.scores, reranked.num_tokens)

    async def load_adapter(self, adapter: ModelVersion) -> None:
        """Have the worker read the adapter's folder, which is leased meanwhile."""
        if adapter.format is not Format.PEFT:
            raise UnsupportedFormat(f"{adapter.name} is not in peft's format, the only one for adapters")
        async with self._store.lease(adapter.name) as folder:
            await self._ask(LoadAdapter(adapter.key, str(folder)))

    async def drop_adapter(self, key: str) -> None:
        """Have the worker forget it."""
        await self._ask(DropAdapter(key))

    async def wait_dead(self) -> str:
        """Wait for its end and tell the cause."""
        return (await self._worker.wait_dead()).message

    async def stop(self) -> None:
        """End it."""
        await self._worker.stop()
        await self._holding

    async def _answer(self, message: Embed | Rerank) -> Any:
        """The one event of a call."""
        async with self._worker.call(message) as call:
            async for answer in call:
                return answer
        raise WorkerLost("the worker ended without an answer")

    async def _hold(self, held: contextlib.AsyncExitStack) -> None:
        async with held:
            await self._worker.wait_dead()

    async def _watch_stats(self) -> None:
        with contextlib.suppress(LaresError):  # The worker's end is told to those who wait for it.
            async with self._worker.call(WatchStats()) as call:
                async for event in call:
                    if isinstance(event, Stats):
                        self.stats = event.stats

    async def _ask(self, message: EngineRequest) -> None:
        async with self._worker.call(message) as call:
            async for _ in call:
                pass


async def _updates(call: AsyncIterator[EngineEvent]) -> AsyncIterator[Update]:
    async for event in call:
        if isinstance(event, Step):
            yield event.update


def _embeddings(embedded: Embedded) -> Embeddings:
    values = array.array("f", embedded.vectors)
    size = embedded.dimensions
    vectors = [values[start : start + size] for start in range(0, len(values), size)]
    return Embeddings(vectors, embedded.num_tokens)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None
