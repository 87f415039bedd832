"""/hf: this house as a Hugging Face Hub, for `HF_ENDPOINT=http://HOST:PORT/hf`.

What huggingface_hub asks for when it downloads: what a repository is, its tree, and its files by revision and path.
"""

import functools

from pydantic import RootModel
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from gateway.blob import BlobAnswer
from gateway.endpoint import Endpoint, Gateway, Handler, json_response, read_query
from gateway.errors import error_body
from gateway.hub.answers import HubError, InfoQuery, RepoInfo, TreeEntry, TreeQuery, repo_info, tree
from gateway.hub.ranges import ByteRange, UnsatisfiableRange, parse_range
from gateway.hub.repo import MAIN, Repo, etag_of
from lares.downloader.v1 import downloader_pb2
from lares.registry.v1 import registry_pb2 as pb
from services.kit import context
from services.kit.errors import (
    EntryNotFound,
    LaresError,
    ModelNotFound,
    VersionNotFound,
)

# What huggingface_hub makes exceptions of its own of: `hf_raise_for_status` in huggingface_hub/utils/_http.py.
_ERROR_CODES: dict[type[LaresError], str] = {
    ModelNotFound: "RepoNotFound",
    VersionNotFound: "RevisionNotFound",
    EntryNotFound: "EntryNotFound",
}
_MAX_HEADER_CHARS = 500


class _RepoConvertor(Convertor[str]):
    """`name` or `org/name`."""

    regex = "[^/]+(?:/[^/]+)?"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("repo", _RepoConvertor())


class Tree(RootModel[list[TreeEntry]]):
    """Files and folders, in the order of their paths."""


def _refusing_as_the_hub(handler: Handler) -> Handler:
    """A handler whose errors are the Hub's."""

    @functools.wraps(handler)
    async def answer(gateway: Gateway, request: Request) -> Response:
        try:
            return await handler(gateway, request)
        except LaresError as error:
            return _refusal(error)

    return answer


def _refusal(error: LaresError) -> Response:
    status, body, headers = error_body(error, context.request_id.get())
    message: str = body["error"]["message"]
    # In the header too: an answer to HEAD has no body.
    shown = "".join(char if " " <= char <= "~" else "?" for char in message)
    headers["x-error-message"] = shown[:_MAX_HEADER_CHARS]
    if type(error) in _ERROR_CODES:
        headers["x-error-code"] = _ERROR_CODES[type(error)]
    if "commit" in error.metadata:
        headers["x-repo-commit"] = error.metadata["commit"]
    refusal = json_response(HubError(error=message), status)
    refusal.headers.update(headers)
    return refusal


@_refusing_as_the_hub
async def get_repo(gateway: Gateway, request: Request) -> Response:
    """What a repository is, at the version that answers."""
    return await _info(gateway, request, MAIN)


@_refusing_as_the_hub
async def get_repo_at_revision(gateway: Gateway, request: Request) -> Response:
    """What a repository is, at a version's id or commit."""
    return await _info(gateway, request, request.path_params["revision"])


async def _info(gateway: Gateway, request: Request, revision: str) -> Response:
    query = read_query(request, InfoQuery)
    repo = await gateway.repos.find(request.path_params["repo"], revision)
    return json_response(repo_info(repo, blobs=query.blobs))


@_refusing_as_the_hub
async def list_repo_root(gateway: Gateway, request: Request) -> Response:
    """What lies in a repository."""
    return await _tree(gateway, request, "")


@_refusing_as_the_hub
async def list_repo_folder(gateway: Gateway, request: Request) -> Response:
    """What lies in one of its folders."""
    return await _tree(gateway, request, request.path_params["path"])


async def _tree(gateway: Gateway, request: Request, folder: str) -> Response:
    query = read_query(request, TreeQuery)
    repo = await gateway.repos.find(request.path_params["repo"], request.path_params["revision"])
    return json_response(Tree(tree(repo, folder, recursive=query.recursive)))


@_refusing_as_the_hub
async def head_repo_file(gateway: Gateway, request: Request) -> Response:
    """Size and digest of a file. No byte of it is read."""
    repo, file = await _find_file(gateway, request)
    length = {"content-length": str(file.size_bytes)}
    return Response(headers=_headers(repo, file) | length, media_type="application/octet-stream")


@_refusing_as_the_hub
async def get_repo_file(gateway: Gateway, request: Request) -> Response:
    """A file, or a range of it."""
    repo, file = await _find_file(gateway, request)
    headers, etag, size_bytes = _headers(repo, file), etag_of(file), file.size_bytes
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    status, part = 200, ByteRange(0, size_bytes)
    # Of a file that was changed since a range of it is of no use.
    if request.headers.get("if-range", etag) == etag:
        try:
            wanted = parse_range(request.headers.get("range", ""), size_bytes)
        except UnsatisfiableRange:
            return Response(status_code=416, headers=headers | {"content-range": f"bytes */{size_bytes}"})
        if wanted is not None:
            status, part = 206, wanted
            headers["content-range"] = part.content_range(size_bytes)
    if not part.num_bytes:
        return Response(headers=headers, media_type="application/octet-stream")
    headers["content-length"] = str(part.num_bytes)
    message = downloader_pb2.ReadBlobRequest(
        digest=file.digest, offset_bytes=part.first, max_bytes=part.num_bytes
    )
    return await BlobAnswer.open(gateway, request.receive, message, status, headers)


async def _find_file(gateway: Gateway, request: Request) -> tuple[Repo, pb.File]:
    path = request.path_params
    repo = await gateway.repos.find(path["repo"], path["revision"])
    return repo, repo.file(path["path"])


def _headers(repo: Repo, file: pb.File) -> dict[str, str]:
    etag = etag_of(file)
    return {
        "accept-ranges": "bytes",
        "etag": etag,
        "x-repo-commit": repo.commit,
        "x-linked-etag": etag,
        "x-linked-size": str(file.size_bytes),
        # A model may hold any page or script; no browser is to show or run it.
        "x-content-type-options": "nosniff",
        "content-disposition": "attachment",
    }


def _names(header: str, etag: str) -> bool:
    """Whether an If-None-Match has that ETag."""
    listed = [each.strip().removeprefix("W/") for each in header.split(",")]
    return etag in listed or "*" in listed


_REPO = "/hf/api/models/{repo:repo}"
_FILE = "/hf/{repo:repo}/resolve/{revision}/{path:path}"
_info_endpoint = functools.partial(Endpoint, "GET", query=InfoQuery, response=RepoInfo, error=HubError)
_tree_endpoint = functools.partial(Endpoint, "GET", query=TreeQuery, response=Tree, error=HubError)
_file_endpoint = functools.partial(Endpoint, error=HubError, media_type="application/octet-stream")

ENDPOINTS = [
    _info_endpoint(f"{_REPO}/revision/{{revision:path}}", get_repo_at_revision, "Tell of a version"),
    _tree_endpoint(f"{_REPO}/tree/{{revision}}", list_repo_root, "List a version's files"),
    _tree_endpoint(f"{_REPO}/tree/{{revision}}/{{path:path}}", list_repo_folder, "List a folder"),
    _info_endpoint(_REPO, get_repo, "Tell of a model as a repository"),
    _file_endpoint("HEAD", _FILE, head_repo_file, "Tell of a file"),
    _file_endpoint("GET", _FILE, get_repo_file, "Download a file or a range of it", also=(206,)),
]
