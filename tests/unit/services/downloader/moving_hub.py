"""A Hugging Face Hub with one repository whose main branch a test moves."""

import asyncio
import hashlib
import json
from typing import Any

from tests.unit.services.downloader.http_server import Request, head, ranged


class MovingHub:
    """`org/repo`. commits: 40 hex digits -> path -> bytes; main: the one that its branch points to."""

    def __init__(self, *commits: dict[str, bytes]) -> None:
        self.commits = {f"{number}" * 40: files for number, files in enumerate(commits, 1)}
        self.main = next(iter(self.commits))
        self.num_asked = 0

    async def answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        """For `serving`."""
        path = request.path.split("?")[0]
        if path == "/api/models/org/repo":
            body = self._info(self.main)
        elif (commit := path.removeprefix("/api/models/org/repo/revision/")) in self.commits:
            body = self._info(commit)
        elif path.startswith("/org/repo/resolve/"):
            commit, _, name = path.removeprefix("/org/repo/resolve/").partition("/")
            await ranged(self.commits[commit][name])(request, writer)
            return
        else:
            writer.write(head("404 Not Found", content_length=0, x_error_code="RepoNotFound"))
            return
        self.num_asked += 1
        writer.write(head("200 OK", content_length=len(body)) + body)

    def _info(self, commit: str) -> bytes:
        siblings = [_sibling(name, content) for name, content in self.commits[commit].items()]
        return json.dumps({"id": "org/repo", "sha": commit, "siblings": siblings, "tags": []}).encode()


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
    if not name.endswith((".json", ".txt")):
        sibling["lfs"] = {
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return sibling
