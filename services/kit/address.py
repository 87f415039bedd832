"""HOST:PORT, as settings and command lines give it."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from services.kit.errors import InvalidArgument

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. port 0 lets the system choose; an IPv6 host is kept without its brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, *, field: str = "address") -> Self:
        """`127.0.0.1:7210`, `localhost:0` or `[::1]:7210`. Raises InvalidArgument."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
            raise InvalidArgument.at(
                field, f"'{text}' must end in ':' and a port from 0 to 65535, as in 127.0.0.1:7210"
            )
        if not host:
            raise InvalidArgument.at(
                field, f"'{text}' must name a host: 127.0.0.1, or 0.0.0.0 for every interface"
            )
        if host.startswith("[") and host.endswith("]"):
            return cls(cls._ipv6(host[1:-1], text, field), int(port))
        if ":" in host:
            raise InvalidArgument.at(field, f"'{text}' must have its IPv6 host in brackets, as in [::1]:7210")
        if not _HOST.fullmatch(host):
            raise InvalidArgument.at(field, f"'{text}' must name a host by its name or IP address")
        return cls(host, int(port))

    @staticmethod
    def _ipv6(host: str, text: str, field: str) -> str:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise InvalidArgument.at(field, f"'{text}' must have an IPv6 address in its brackets") from None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. No name but localhost is trusted to stay home."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def reachable(self) -> "Address":
        """Where a client on this machine connects to: a wildcard host is listened on, not connected to."""
        return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Let a settings field be of this type: text is parsed, an Address is taken as it is."""

        def validate(value: object) -> "Address":
            if isinstance(value, cls):
                return value
            if not isinstance(value, str):
                raise ValueError("must be HOST:PORT")
            try:
                return cls.parse(value)
            except InvalidArgument as error:
                raise ValueError(error.violations[0].description) from None

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )
