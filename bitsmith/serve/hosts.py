"""By which names a server may be called, so that no page of another name reaches it (DNS rebinding).

A page of evil.example may let its own name point to 127.0.0.1 once it is loaded. A browser then takes the server for
that page's own, and lets the page read all answers. But it says evil.example in the Host header of each request.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from bitsmith.errors import UsageError


class Hosts:
    """The names of a server. Addresses are always among them: no page can be at an address and mean another.

    allowed: further names, without port
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._names = {"localhost", *(name.lower().rstrip(".") for name in allowed)}

    def refused(self, said: Sequence[bytes]) -> str | None:
        """The name in the Host headers of a request that is not the server's; None if all are. "" is no header."""
        names = [_name(value.decode("latin-1")) for value in said] or [""]
        return next((name for name in names if not self._knows(name)), None)

    def _knows(self, name: str) -> bool:
        return name in self._names or name.endswith(".localhost") or _address(name)


def check_names(names: Iterable[str]) -> None:
    """Raise UsageError for what is no name of a host."""
    for name in names:
        bare = name.rstrip(".")
        if not bare or _name(bare) != bare.lower() or set(bare) & set("/@?#* \t"):
            raise UsageError(f"`--allowed-host` {name!r}: expected a name alone, as my.machine.")


def _name(host: str) -> str:
    """The name or address of a Host header, without port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
