"""Whether a server can be reached: asked before libraries that would retry for a minute."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

ROUTE_TIMEOUT_S = 3.0
PORTS = {"http": 80, "https": 443}


def route_problem(url: str) -> str | None:
    """Why no connection to a server can be made; None where it, or the proxy that leads to it, takes one."""
    place = urlsplit(proxy_of(url) or url)
    try:
        # urlsplit reads the port only here, and raises where it is not a number.
        port = place.port or PORTS.get(place.scheme, 443)
        socket.create_connection((place.hostname or "", port), timeout=ROUTE_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def proxy_of(url: str) -> str | None:
    """URL of the proxy that HTTP clients use for a server, from HTTPS_PROXY, ALL_PROXY, NO_PROXY and their like."""
    # Imports http.client and email, which a run without a route to anywhere does not need.
    from urllib.request import getproxies, proxy_bypass

    address = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(address.netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
