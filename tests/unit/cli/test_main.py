import pytest

from cli.main import globals_first


@pytest.mark.parametrize(
    ("written", "parsed"),
    [
        (["up", "--home", "/x"], ["--home", "/x", "up"]),
        (["list", "--json", "--grpc=h:1"], ["--grpc=h:1", "list", "--json"]),
        (["--http", "h:1", "chat", "hi"], ["--http", "h:1", "chat", "hi"]),
        (
            ["chat", "--", "--home", "is where the heart is"],
            ["chat", "--", "--home", "is where the heart is"],
        ),
        (["up", "--home"], ["--home", "up"]),
        (["chat", "--homely"], ["chat", "--homely"]),
    ],
)
def test_global_options_may_stand_anywhere_before_a_double_dash(written: list[str], parsed: list[str]):
    assert globals_first(written) == parsed
