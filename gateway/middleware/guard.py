"""Host and Origin: no page in a browser reaches this machine's models by a name that it controls (DNS rebinding)."""

import ipaddress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import error_response
from services.kit import context
from services.kit.errors import PermissionDenied


class Guard:
    """Refuses unknown Hosts, on loopback or where hosts are listed, and pages of other origins, everywhere."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        on_loopback: bool,
        allowed_hosts: tuple[str, ...],
        allowed_origins: tuple[str, ...],
    ) -> None:
        """on_loopback: whether the gateway listens where only this machine reaches it."""
        self._app = app
        self._checks_host = on_loopback or bool(allowed_hosts)
        self._hosts = frozenset(host.lower() for host in allowed_hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is allowed."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await error_response(refusal, context.request_id.get())(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> PermissionDenied | None:
        hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        origins = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"origin"]
        if self._checks_host and not (len(hosts) == 1 and self._knows_host(hosts[0])):
            return PermissionDenied(
                "this Host is not served; call by a loopback address, or add the name to LARES_GATEWAY_ALLOWED_HOSTS"
            )
        for origin in origins:
            if origin not in self._origins and not (hosts and _same_origin(origin, hosts[0])):
                return PermissionDenied(
                    "pages of this Origin may not call; add it to LARES_GATEWAY_ALLOWED_ORIGINS to let them"
                )
        return None

    def _knows_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or _is_loopback(name)


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _same_origin(origin: str, host: str) -> bool:
    return origin in (f"http://{host}", f"https://{host}")
