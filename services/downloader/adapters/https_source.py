"""`https:`: one file at an address: a GGUF file, or a zip with a model in it.

Its sha256 stands behind the address, as pip writes it, or is recorded when it has come: then its version is told by
its bytes. The parser of references lets http through for this machine only, and neither a user nor a query: what is
pulled is recorded and shown, and those hold secrets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from services.downloader.adapters.http_client import HttpClient, HttpLimits
from services.downloader.adapters.http_fetch import fetch
from services.downloader.core.paths import check_path
from services.downloader.core.sources import LocalFile, OnBytes, PullRequest, RemoteFile, Resolved, Unpacker
from services.kit.errors import UnsupportedFormat

_VERSION_CHARS: Final = 16


class HttpsSource:
    """See `Source`. Nothing is asked before the file itself: there is nothing else at such an address."""

    def __init__(self, unpacker: Unpacker, limits: HttpLimits) -> None:
        self._unpacker = unpacker
        self._http = HttpClient(limits=limits)

    async def resolve(self, request: PullRequest) -> Resolved:
        """Take the name of the file out of the address."""
        ref = request.refs[0]
        name = unquote(ref.name.rpartition("/")[2])
        if "/" in check_path(name) or not name.lower().endswith((".gguf", ".zip")):
            raise UnsupportedFormat(
                f"'{name[:120]}' is neither a GGUF file nor a zip with a model; no other single file is loaded"
            )
        file = RemoteFile(name, f"{ref.provider}:{ref.name}", sha256=ref.revision)
        version_id = ref.revision[:_VERSION_CHARS] if ref.revision else None
        return Resolved(str(ref), ref.revision or "", version_id, (file,))

    async def latest(self, request: PullRequest) -> None:
        """None: what lies at an address is told by its bytes alone."""
        return None

    async def fetch(self, file: RemoteFile, target: Path, on_bytes: OnBytes) -> str:
        """Bring the file here."""
        return await fetch(self._http, file, target, on_bytes)

    async def unpack(
        self, request: PullRequest, fetched: Mapping[str, Path], folder: Path
    ) -> Sequence[LocalFile]:
        """Take the model out of a zip; a GGUF file is what it is."""
        [(name, local)] = fetched.items()
        if not name.lower().endswith(".zip"):
            return [LocalFile(name, local)]
        return [
            LocalFile(path, folder / path) for path in await self._unpacker.unpack([local], "zip", folder)
        ]

    async def close(self) -> None:
        """Close connections."""
        await self._http.close()
