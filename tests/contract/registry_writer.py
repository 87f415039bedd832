"""A process that records models until it is killed, and says so after each: `python -m ... URL FIRST`."""

import asyncio
import sys

from sqlalchemy.engine import make_url

from services.registry.adapters.sql_store import SqlStore
from services.registry.core.catalog import Catalog
from services.registry.core.models import File, Format, Model, ModelKind, Version, VersionKind
from services.registry.core.watch import Wakeup


async def main(url: str, first: int) -> None:
    store = SqlStore(make_url(url))
    await store.open()
    catalog = Catalog(store, Wakeup())
    number = first
    while True:
        model_id = f"m{number}"
        await catalog.create_model(Model(model_id, kind=ModelKind.EMBEDDING))
        files = tuple(File(f"{part}.bin", part, f"sha256:{part:064x}") for part in range(20))
        await catalog.create_version(
            Version(model_id, "v1", VersionKind.WEIGHTS, format=Format.ONNX, files=files)
        )
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
