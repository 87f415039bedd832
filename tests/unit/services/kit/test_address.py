import pytest

from services.kit.address import Address
from services.kit.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7210", Address("127.0.0.1", 7210)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
        ("registry.house.lan:80", Address("registry.house.lan", 80)),
    ],
)
def test_an_address_parses_and_prints_as_it_was(text: str, address: Address):
    assert Address.parse(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        ":80",
        "localhost:",
        "localhost:x",
        "localhost:65536",
        "::1:80",
        "[::g]:80",
        "a b:1",
        "a:-1",
    ],
)
def test_a_bad_address_is_refused(text: str):
    with pytest.raises(InvalidArgument):
        Address.parse(text, field="http")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("myhost", False),
    ],
)
def test_only_loopback_is_loopback(host: str, loopback: bool):
    assert Address(host, 1).is_loopback is loopback


def test_a_wildcard_is_reached_through_loopback():
    assert Address("0.0.0.0", 1).reachable == Address("127.0.0.1", 1)
    assert Address("::", 1).reachable == Address("::1", 1)
    assert Address("10.0.0.1", 1).reachable == Address("10.0.0.1", 1)
