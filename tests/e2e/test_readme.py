"""The README is true: every command in it is run as it stands, against a house on other addresses."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import House

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
SHELL = [code for language, code in BLOCKS if language == "sh"]
TWO_COMMANDS = ["make up\n", "make test\n"]


def in_language(name: str) -> str:
    codes: list[str] = [code for language, code in BLOCKS if language == name]
    assert len(codes) == 1
    return codes[0]


@pytest.fixture(scope="module")
def workshop(
    house: House, lessons: Path, librivox: list[tuple[Path, str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the files that the README's commands are given."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copy(lessons, folder / "lessons.jsonl")
    shutil.copy(librivox[0][0], folder / "speech.wav")
    return folder


def shell(command: str, house: House, folder: Path) -> str:
    """Run a command of the README against the house, and return what it printed."""
    command = command.replace("127.0.0.1:7210", house.http).replace("127.0.0.1:7211", house.grpc)
    command = re.sub(r"^make ", f"make --no-print-directory -C {ROOT} ", command, flags=re.MULTILINE)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LARES_HOME": str(house.home),
        "LARES_HTTP": house.http,
        "LARES_GRPC": house.grpc,
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert '"error"' not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("block", [code for code in SHELL if code not in TWO_COMMANDS])
def test_commands_of_a_block_work(block: str, house: House, workshop: Path) -> None:
    printed = shell(block, house, workshop)
    assert printed.strip()
    if "capital of France" in block:
        assert "Paris" in "".join(re.findall(r"[\w .]+", printed))


def test_make_up_serves_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    assert TWO_COMMANDS[0] in SHELL
    environment = os.environ | {
        "LARES_HOME": str(tmp_path / "home"),
        "LARES_HTTP": "127.0.0.1:0",
        "LARES_GRPC": "127.0.0.1:0",
        "SKIP_MODEL_DOWNLOADS": "1",
    }
    with subprocess.Popen(
        ["make", "--no-print-directory", "-C", str(ROOT), "up"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        # A shell starts what it runs in the background (`make test &`) with Ctrl-C ignored, and make would keep to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            assert process.stdout is not None
            ready = next(line for line in process.stdout if line.startswith("lares ready"))
            assert re.fullmatch(r"lares ready http=127\.0\.0\.1:\d+ grpc=127\.0\.0\.1:\d+\n", ready)
            shown = re.findall(r"^lares ready .*\n", README, re.MULTILINE)
            assert [re.sub(r":\d+", ":0", line) for line in shown] == [re.sub(r":\d+", ":0", ready)]
            # As the terminal does: everything in the foreground gets it, make too, which dies of it.
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) == -signal.SIGINT
            assert process.stdout.read() == ""  # All who could write to it are gone.
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def test_make_test_is_what_ci_runs() -> None:
    assert TWO_COMMANDS[1] in SHELL
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_python_example_works(house: House) -> None:
    code = in_language("python").replace("127.0.0.1:7210", house.http)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_typescript_example_is_the_one_that_is_run() -> None:
    assert in_language("typescript") == (ROOT / "tests/e2e/node/chat.ts").read_text()


def test_tree_names_only_what_is_there() -> None:
    tree = README.partition("## How it is built")[2].partition("```\n")[2].partition("```")[0]
    parents: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        parents = [*parents[:depth], name]
        assert (ROOT / "".join(parents)).exists(), line


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_settings_table_is_what_the_settings_say(house: House) -> None:
    rows = {row["env"]: row for row in house.json("settings")}
    table = re.findall(r"^\| `(LARES_\w+)` \| `([\w.]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    assert len(table) >= 10
    for env, key, default, description in table:
        shown = rows[env]["default"].replace(str(Path.home()), "~")
        assert (rows[env]["key"], f"`{shown}`" if shown else "", rows[env]["description"]) == (
            key,
            default,
            description,
        )
