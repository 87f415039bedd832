"""Each service in a process of its own, over PostgreSQL and one shared store: what docker-compose.yml says, without Docker."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import psutil
import pytest

from tests.e2e.conftest import LARES
from tests.postgres import PostgresServer

SERVICES = ("registry", "downloader", "inference", "speech", "trainer", "gateway")
MIB = 1024**2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Processes:
    """Six processes that know each other by address."""

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.ports = {service: free_port() for service in SERVICES}
        self.environment = os.environ | {
            **{
                f"LARES_{service.upper()}_ENDPOINT": f"127.0.0.1:{port}"
                for service, port in self.ports.items()
                if service != "gateway"
            },
            **{
                f"LARES_{service.upper()}_DATABASE": postgres.create_schema().render_as_string(
                    hide_password=False
                )
                for service in ("registry", "downloader", "trainer")
            },
            "LARES_HTTP": f"127.0.0.1:{self.ports['gateway']}",
            "LARES_STORE": str(folder / "store"),
        }
        self.running: dict[str, subprocess.Popen[str]] = {}
        for service in SERVICES:
            log = (folder / f"{service}.log").open("w")
            self.running[service] = subprocess.Popen(
                [
                    LARES,
                    "serve",
                    service,
                    f"--home={folder / service}",
                    f"--grpc=127.0.0.1:{self.ports[service] if service != 'gateway' else 0}",
                ],
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            log.close()
        for service, process in self.running.items():
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("lares ready"), (folder / f"{service}.log").read_text()

    def lares(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LARES, *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def stop(self) -> dict[str, int]:
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        codes = {service: process.wait(60) for service, process in self.running.items()}
        for process in self.running.values():
            assert process.stdout is not None
            process.stdout.close()
        return codes


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Processes]:
    processes = Processes(tmp_path_factory.mktemp("processes"), postgres)
    yield processes
    assert processes.stop() == dict.fromkeys(SERVICES, 0)


def test_services_find_each_other(processes: Processes) -> None:
    assert processes.lares("status").returncode == 0
    assert processes.lares("pull", "all-minilm-l6-v2").returncode == 0
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{processes.ports['gateway']}/v1", api_key="none", max_retries=0
    ) as client:
        assert len(client.embeddings.create(model="all-minilm-l6-v2", input="hello").data[0].embedding) == 384


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_alone_takes_little_memory_and_loads_no_engine(processes: Processes, service: str) -> None:
    process = psutil.Process(processes.running[service].pid)
    assert process.memory_info().rss < 150 * MIB
    mapped = " ".join(mapping.path for mapping in process.memory_maps())
    assert not [
        engine for engine in ("libtorch", "libvosk", "ctranslate2", "onnxruntime") if engine in mapped
    ]
