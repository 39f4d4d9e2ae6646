"""Which requests the page answers: those made by its own page, to a name that is this computer's."""

import ipaddress
import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Guard:
    """An ASGI app that refuses, with 403 and one line, what another site's page would have this one do.

    Another site can have its name lead here (DNS rebinding); its requests then carry a foreign Host. Or it sends
    requests here from its own page; these carry a foreign Origin.

    app: the ASGI app that is guarded.
    host: the address that the page listens on. Where it is loopback, requests to localhost, 127.0.0.1 and ::1 are
        answered; where it is every address (0.0.0.0 or ::), those to any address as numbers, and to this computer's
        own name; otherwise those to this address, and to this computer's own name.
    names: further host names that lead here, such as that of a proxy.
    """

    def __init__(self, app: Callable, host: str, names: Collection[str] = ()):
        self.app, self.names = app, {name.lower() for name in names}
        self.known, self.any_address = {host.lower()} | _LOOPBACK | self.names, False
        address = _address(host)
        if host.lower() != "localhost" and not (address and address.is_loopback):
            own = socket.gethostname().lower()
            self.known |= {own, f"{own.partition('.')[0]}.local"}
            self.any_address = address is not None and address.is_unspecified

    async def __call__(self, scope, receive, send):
        reason = self.refusal(scope["headers"]) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": f"{reason}\n".encode()})

    def refusal(self, headers: Collection[tuple[bytes, bytes]]) -> str | None:
        """Why a request with these headers is refused; None where it is answered."""
        hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._leads_here(_host(f"//{hosts[0]}")):
            return "this name is not known to lead here; --allow-host NAME makes it known"
        for origin in (value.decode("latin-1").lower() for name, value in headers if name == b"origin"):
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or (rest != hosts[0] and _host(origin) not in self.names):
                return "this request comes from another site's page"
        return None

    def _leads_here(self, host: str) -> bool:
        return host in self.known or (self.any_address and _address(host) is not None)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # such as [::1 without its end
        return ""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
