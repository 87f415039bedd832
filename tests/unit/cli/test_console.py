from datetime import UTC, datetime

import pytest
import typer
from google.protobuf.timestamp_pb2 import Timestamp

from cli import console
from lares.downloader.v1 import downloader_pb2
from lares.inference.v1 import inference_pb2
from lares.registry.v1 import registry_pb2
from services.kit.errors import ModelNotFound


def test_json_has_whole_numbers_where_proto_json_has_strings():
    download = downloader_pb2.Download(
        name="downloads/1",
        completed_bytes=2**40,
        files=[downloader_pb2.FileProgress(path="a", completed_bytes=2**41)],
    )
    data = console.to_json(download)
    assert data["completed_bytes"] == 2**40
    assert data["files"][0]["completed_bytes"] == 2**41
    assert data["bytes_per_second"] == 0
    assert "total_bytes" not in data


def test_json_keeps_names_enums_and_times():
    created = Timestamp()
    created.FromDatetime(datetime(2026, 11, 21, tzinfo=UTC))
    model = registry_pb2.Model(
        state=registry_pb2.MODEL_STATE_AVAILABLE, create_time=created, labels={"team": "house"}
    )
    data = console.to_json(model)
    assert data["state"] == "MODEL_STATE_AVAILABLE"
    assert data["create_time"] == "2026-11-21T00:00:00Z"
    assert data["labels"] == {"team": "house"}
    assert data["display_name"] == ""


def test_a_table_shows_what_it_is_given_as_it_is(capsys: pytest.CaptureFixture[str]):
    console.print_table(("A", "B"), [["[red]x[/red]", "[/none] y"]], empty="")
    assert "[red]x[/red]  [/none] y" in capsys.readouterr().out


def test_enum_is_told_without_its_prefix():
    model = registry_pb2.Model(kind=registry_pb2.MODEL_KIND_SPEECH_TO_TEXT)
    assert console.enum_text(model, "kind") == "speech to text"
    assert console.enum_text(inference_pb2.LoadedModel(), "state") == "unspecified"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (98_362_432, "98.4 MB"), (5 * 10**15, "5000.0 TB")],
)
def test_size_is_told_in_units_of_a_thousand(num_bytes: int, text: str):
    assert console.size_text(num_bytes) == text


def test_error_ends_the_command_with_its_message_and_reason(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(typer.Exit) as caught, console.exit_code():
        raise ModelNotFound("model 'x' is not here; `lares pull x` fetches it")
    assert caught.value.exit_code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "`lares pull x`" in printed.err
    assert "MODEL_NOT_FOUND" in printed.err


def test_interrupt_ends_the_command_as_a_shell_expects():
    with pytest.raises(typer.Exit) as caught, console.exit_code():
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
