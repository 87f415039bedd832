"""/hf: what the Hub's own client asks, and what nobody should."""

import asyncio
import hashlib
import socket
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from gateway.hub.ranges import ByteRange, UnsatisfiableRange, parse_range
from gateway.repos import Repos
from gateway.service import build
from gateway.upstream import Upstream
from lares.registry.v1 import registry_pb2 as pb
from services.kit.errors import VersionNotFound
from services.kit.host import Host
from tests.unit.gateway.fake_services import FakeServices

CONFIG, WEIGHTS, VOCABULARY = b'{"model_type": "tiny"}', bytes(range(256)), b"a b c"
FILE = "/hf/tiny/resolve/main/model.safetensors"
ETAG = f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'


@pytest.fixture(autouse=True)
def model(services: FakeServices) -> pb.Version:
    """The one model of the fake registry, with files."""
    put, version = services.downloader.put, services.registry.weights
    version.files.extend(
        [
            put("model.safetensors", WEIGHTS),
            put("config.json", CONFIG),
            put("deep/er/vocabulary.txt", VOCABULARY),
            put("empty", b""),
        ]
    )
    version.format = pb.FORMAT_SAFETENSORS
    services.registry.model.license = "apache-2.0"
    return version


@pytest.fixture
def endpoint(url: str) -> str:
    return f"{url}/hf"


async def info(http: httpx2.AsyncClient, where: str = "tiny") -> dict[str, Any]:
    answer = await http.get(f"/hf/api/models/{where}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def test_the_hubs_client_takes_a_snapshot_and_lists_files(endpoint: str, tmp_path: Path) -> None:
    def work() -> None:
        folder = Path(snapshot_download("tiny", endpoint=endpoint, cache_dir=tmp_path))
        assert (folder / "model.safetensors").read_bytes() == WEIGHTS
        assert (folder / "deep/er/vocabulary.txt").read_bytes() == VOCABULARY
        assert (folder / "empty").read_bytes() == b""
        # Stored by the digest, as what lies in LFS.
        assert (folder / "model.safetensors").resolve().name == hashlib.sha256(WEIGHTS).hexdigest()
        api = HfApi(endpoint=endpoint, token=False)
        names = ["config.json", "deep/er/vocabulary.txt", "empty", "model.safetensors"]
        assert sorted(api.list_repo_files("tiny")) == names
        told = api.model_info("tiny", files_metadata=True)
        assert told.sha == folder.name
        assert told.card_data is not None
        assert told.card_data.license == "apache-2.0"
        assert {file.rfilename: file.size for file in told.siblings or []}["config.json"] == len(CONFIG)
        root = [entry.path for entry in api.list_repo_tree("tiny")]
        assert root == ["config.json", "deep", "empty", "model.safetensors"]
        assert [entry.path for entry in api.list_repo_tree("tiny", "deep")] == ["deep/er"]
        below = api.list_repo_tree("tiny", "deep", recursive=True)
        assert [entry.path for entry in below] == ["deep/er", "deep/er/vocabulary.txt"]

    await asyncio.to_thread(work)


async def test_what_is_unknown_raises_the_exceptions_of_the_hubs_client(
    endpoint: str, tmp_path: Path, services: FakeServices
) -> None:
    def get(repo: str, path: str, revision: str = "main") -> None:
        hf_hub_download(repo, path, revision=revision, endpoint=endpoint, cache_dir=tmp_path, token=False)

    def work() -> None:
        for repo in ("nope", "no/pe", "Tiny"):
            with pytest.raises(RepositoryNotFoundError):
                get(repo, "config.json")
            with pytest.raises(RepositoryNotFoundError):
                snapshot_download(repo, endpoint=endpoint, cache_dir=tmp_path)
        with pytest.raises(EntryNotFoundError):
            get("tiny", "nope.json")
        with pytest.raises(EntryNotFoundError):
            list(HfApi(endpoint=endpoint).list_repo_tree("tiny", "nope"))
        for revision in ("nope", "refs/pr/1", "0" * 40):
            with pytest.raises(RevisionNotFoundError):
                snapshot_download("tiny", revision=revision, endpoint=endpoint, cache_dir=tmp_path)
            with pytest.raises(RevisionNotFoundError):
                get("tiny", "config.json", revision)

    await asyncio.to_thread(work)


async def test_a_version_is_found_by_its_id_its_commit_and_where_it_came_from(
    http: httpx2.AsyncClient, model: pb.Version
) -> None:
    commit = (await info(http))["sha"]
    assert len(commit) == 40
    for where in ("tiny/revision/1", f"tiny/revision/{commit}", "tiny-org/Tiny", "tiny/revision/main"):
        assert (await info(http, where))["sha"] == commit
    assert (await info(http, "tiny-org/Tiny"))["id"] == "tiny-org/Tiny"
    adapter = await info(http, "tiny/revision/pirate")
    assert adapter["lares"]["version"] == "pirate"
    model.revision = "0123456789abcdef0123456789abcdef01234567"
    assert (await info(http))["sha"] == model.revision
    assert (await info(http, f"tiny/revision/{model.revision}"))["sha"] == model.revision


async def test_a_commit_changes_with_the_files_and_with_nothing_else(
    http: httpx2.AsyncClient, model: pb.Version, services: FakeServices
) -> None:
    before = (await info(http))["sha"]
    files = list(reversed(model.files))
    del model.files[:]
    model.files.extend(files)
    assert (await info(http))["sha"] == before
    model.files.append(services.downloader.put("more", b"x"))
    assert (await info(http))["sha"] != before


async def test_what_is_quarantined_is_not_served_and_another_version_still_is(
    http: httpx2.AsyncClient, model: pb.Version
) -> None:
    model.state = pb.VERSION_STATE_QUARANTINED
    for where in (FILE, FILE.replace("main", "1"), "/hf/api/models/tiny"):
        answer = await http.get(where)
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RevisionNotFound")
    assert (await info(http, "tiny/revision/pirate"))["lares"]["version"] == "pirate"


async def test_a_head_tells_all_and_reads_nothing(http: httpx2.AsyncClient, services: FakeServices) -> None:
    answer = await http.head(FILE)
    assert answer.status_code == 200
    assert answer.headers["content-length"] == answer.headers["x-linked-size"] == "256"
    assert answer.headers["etag"] == answer.headers["x-linked-etag"] == ETAG
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["x-repo-commit"] == (await info(http))["sha"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not services.downloader.requests
    missing = await http.head("/hf/tiny/resolve/main/nope")
    assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")
    assert missing.headers["x-repo-commit"] == answer.headers["x-repo-commit"]
    assert "nope" in missing.headers["x-error-message"]


@pytest.mark.parametrize(
    ("header", "first", "last"),
    [
        ("bytes=0-", 0, 255),
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=250-9999999999", 250, 255),
        ("bytes=255-", 255, 255),
        ("bytes=-1", 255, 255),
        ("bytes=-256", 0, 255),
        ("bytes=-9999", 0, 255),
    ],
)
async def test_a_range_is_answered_with_that_part(
    http: httpx2.AsyncClient, services: FakeServices, header: str, first: int, last: int
) -> None:
    answer = await http.get(FILE, headers={"range": header})
    assert answer.status_code == 206
    assert answer.content == WEIGHTS[first : last + 1]
    assert answer.headers["content-range"] == f"bytes {first}-{last}/256"
    assert answer.headers["content-length"] == str(last + 1 - first)
    (asked,) = services.downloader.requests
    assert (asked.offset_bytes, asked.max_bytes) == (first, last + 1 - first)


@pytest.mark.parametrize("header", ["bytes=256-", "bytes=256-300", "bytes=-0", "bytes=99999999999999-"])
async def test_a_range_without_a_byte_of_the_file_is_a_416(http: httpx2.AsyncClient, header: str) -> None:
    answer = await http.get(FILE, headers={"range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */256"
    assert not answer.content


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-1",
        "bytes=1-2,4-5",
        "lines=1-2",
        "bytes=a-b",
        "bytes=1-" + "9" * 99,
    ],
)
async def test_what_is_no_range_is_answered_with_the_whole(http: httpx2.AsyncClient, header: str) -> None:
    answer = await http.get(FILE, headers={"range": header})
    assert (answer.status_code, answer.content) == (200, WEIGHTS)


async def test_a_file_that_the_client_has_is_not_sent_again(
    http: httpx2.AsyncClient, services: FakeServices
) -> None:
    for header in (ETAG, f'"x", W/{ETAG}', "*"):
        answer = await http.get(FILE, headers={"if-none-match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == ETAG
    assert not services.downloader.requests
    assert (await http.get(FILE, headers={"if-none-match": '"x"'})).status_code == 200


async def test_a_range_of_another_file_than_the_one_begun_is_answered_with_the_whole(
    http: httpx2.AsyncClient,
) -> None:
    rest = {"range": "bytes=200-"}
    assert (await http.get(FILE, headers=rest | {"if-range": ETAG})).status_code == 206
    changed = await http.get(FILE, headers=rest | {"if-range": '"another"'})
    assert (changed.status_code, changed.content) == (200, WEIGHTS)


async def test_an_empty_file_is_sent_and_has_no_range(http: httpx2.AsyncClient) -> None:
    where = FILE.replace("model.safetensors", "empty")
    answer = await http.get(where)
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")
    assert (await http.get(where, headers={"range": "bytes=0-"})).status_code == 416


@pytest.mark.parametrize(
    "path",
    [
        "/hf/tiny/resolve/main/../../../etc/passwd",
        "/hf/tiny/resolve/main/%2e%2e/%2e%2e/etc/passwd",
        "/hf/tiny/resolve/main/..%2f..%2fetc%2fpasswd",
        "/hf/tiny/resolve/main//etc/passwd",
        "/hf/tiny/resolve/main/model.safetensors%00.txt",
        "/hf/tiny/resolve/main/%0d%0aset-cookie:%20a=b",
        "/hf/tiny/resolve/main/%ff%fe",
        "/hf/tiny/resolve/main/" + "a/" * 2000,
        "/hf/tiny/resolve/main/",
        "/hf/tiny/resolve/..%2f..%2f/model.safetensors",
        "/hf/tiny/resolve/%00/model.safetensors",
        "/hf/..%2f..%2fetc/resolve/main/passwd",
        "/hf/%00/resolve/main/x",
        "/hf/tiny%3Apirate/resolve/main/x",
        "/hf/tiny%40main/resolve/main/x",
        "/hf/org%2Fname:tag/resolve/main/x",
        "/hf/hf:tiny-org/Tiny/resolve/main/x",
        "/hf/a/b/c/resolve/main/x",
        "/hf/api/models/",
        "/hf/api/models/..",
        "/hf/api/models/%00",
        "/hf/api/models/" + "a" * 4000,
        "/hf/api/models/models%2Ftiny",
        "/hf/api/models/tiny/revision/%00",
        "/hf/api/models/tiny/revision/" + "f" * 3000,
        "/hf/api/models/tiny/tree/main/%2e%2e",
        "/hf/api/models/tiny/tree/main/deep%00",
        "/hf/api/datasets/tiny",
        "/hf/datasets/tiny/resolve/main/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_hostile_path_is_not_found(http: httpx2.AsyncClient, path: str, method: str) -> None:
    answer = await http.request(method, path)
    assert answer.status_code in (400, 404), answer.text
    assert "set-cookie" not in answer.headers


async def test_a_query_that_makes_no_sense_is_a_400(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/hf/api/models/tiny?blobs=perhaps")
    assert answer.status_code == 400
    assert "blobs" in answer.json()["error"]


async def test_a_blob_that_is_lost_or_too_short_is_no_whole_answer(
    http: httpx2.AsyncClient, services: FakeServices
) -> None:
    digest = f"sha256:{ETAG.strip(chr(34))}"
    services.downloader.blobs[digest] = WEIGHTS[:100]
    with pytest.raises(httpx2.RemoteProtocolError):
        await http.get(FILE)
    del services.downloader.blobs[digest]
    answer = await http.get(FILE)
    assert answer.status_code == 500
    assert "pull the model again" in answer.json()["error"]


async def test_a_client_that_hangs_up_ends_the_read(http: httpx2.AsyncClient, services: FakeServices) -> None:
    services.downloader.stalls = True
    async with http.stream("GET", FILE) as answer:
        assert answer.status_code == 200
        assert services.downloader.num_open == 1
    async with asyncio.timeout(10):
        await services.downloader.idle.wait()


async def test_a_client_that_takes_nothing_is_let_go(
    host: Host, services: FakeServices, model: pb.Version
) -> None:
    gateway = build(Host(host.settings, {"gateway.body_timeout_s": 0.2}))
    await gateway.start()
    try:
        # More than all buffers on the way hold.
        services.downloader.chunk_bytes = 256 * 1024
        model.files.append(services.downloader.put("large", bytes(64 * 1024 * 1024)))
        assert gateway.bound is not None
        with socket.create_connection((gateway.bound.host, gateway.bound.port)) as client:
            client.sendall(b"GET /hf/tiny/resolve/main/large HTTP/1.1\r\nhost: localhost\r\n\r\n")
            async with asyncio.timeout(20):
                await services.downloader.idle.wait()
            assert services.downloader.num_open == 0
    finally:
        await gateway.stop()


async def test_a_repository_is_asked_for_once_in_a_while(services: FakeServices, host: Host) -> None:
    now_s = 100.0
    upstream = Upstream(host.channel)
    repos = Repos(upstream, timeout_s=10, remember_s=1, now_s=lambda: now_s)
    before = await repos.find("tiny", "main")
    services.registry.weights.revision = "0123456789abcdef0123456789abcdef01234567"
    assert await repos.find("tiny", "main") is before
    assert (await repos.find("tiny", "1")).commit != before.commit
    now_s = 101.0
    assert (await repos.find("tiny", "main")).commit == services.registry.weights.revision
    for number in range(100):
        with pytest.raises(VersionNotFound):
            await repos.find("tiny", f"no-{number}")


def test_a_range_is_never_empty_and_never_past_the_end() -> None:
    for size_bytes in (0, 1, 5):
        for header in ("bytes=0-", "bytes=-1", "bytes=0-0", "bytes=4-9", "bytes=-0"):
            try:
                part = parse_range(header, size_bytes)
            except UnsatisfiableRange:
                continue
            assert isinstance(part, ByteRange)
            assert part.num_bytes >= 1
            assert part.first + part.num_bytes <= size_bytes
