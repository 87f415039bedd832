import json
import logging
import urllib.request
from collections.abc import Iterator

import pytest
import structlog

from services.kit import context
from services.kit.address import Address
from services.kit.errors import FailedPrecondition
from services.kit.telemetry import MetricsPort, configure_logging


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, config = root.handlers, root.level, structlog.get_config()
    yield
    root.handlers, root.level = handlers, level
    structlog.configure(**config)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    captured = capsys.readouterr()
    assert captured.out == ""
    line: dict[str, object] = json.loads(captured.err.splitlines()[-1])
    return line


def test_a_line_is_json_with_its_facts_and_the_request_id(capsys: pytest.CaptureFixture[str]):
    configure_logging("info", "json")
    context.bind_request([("x-request-id", "abc")])
    structlog.get_logger("lares.test").info("model loaded", model="ở-đây", seconds=1.5)
    line = last_line(capsys)
    context.request_id.set("")
    assert line["event"] == "model loaded"
    assert line["model"] == "ở-đây"
    assert line["request_id"] == "abc"
    assert line["level"] == "info"
    assert line["logger"] == "lares.test"


def test_lines_of_the_standard_library_come_out_alike(capsys: pytest.CaptureFixture[str]):
    configure_logging("info", "json")
    logging.getLogger("some.library").warning("watch %s", "out")
    line = last_line(capsys)
    assert (line["event"], line["level"]) == ("watch out", "warning")


def test_what_is_below_the_level_is_not_logged(capsys: pytest.CaptureFixture[str]):
    configure_logging("warning", "json")
    structlog.get_logger("x").info("quiet")
    assert capsys.readouterr().err == ""


def test_secrets_are_masked_however_deep(capsys: pytest.CaptureFixture[str]):
    configure_logging("info", "json")
    headers = {"Authorization": "Bearer hunter2", "Accept": "*/*"}
    structlog.get_logger("x").info(
        "call", api_key="hunter2", headers=headers, all=[{"db_password": "hunter2"}]
    )
    err = capsys.readouterr().err
    assert "hunter2" not in err
    assert "*/*" in err


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_is_logged_without_the_values_of_locals(
    capsys: pytest.CaptureFixture[str], log_format: str
):
    configure_logging("info", log_format)
    prompt = "dear diary"
    try:
        assert prompt
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    err = capsys.readouterr().err
    assert "broken" in err
    assert "dear diary" not in err.replace('prompt = "dear diary"', "")


async def test_metrics_are_served_on_their_own_port():
    port = MetricsPort(Address("127.0.0.1", 0))
    await port.start()
    try:
        with urllib.request.urlopen(f"http://{port.address}/metrics") as answer:  # noqa: ASYNC210
            assert b"python_info" in answer.read()
        with pytest.raises(FailedPrecondition, match="cannot be served"):
            await MetricsPort(port.address).start()
    finally:
        await port.stop()
