"""Programs of ours reach names below ``localhost``, as browsers do by themselves: not every system knows them.

``notebooks up`` gives service and servers hosts of such names; its commands and the doctor ask them.
https://www.rfc-editor.org/rfc/rfc6761#section-6.3
"""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx

SUFFIX = ".localhost"


class LoopbackNames(httpx.HTTPTransport):
    """Connects to 127.0.0.1 whatever name is asked for; the request still says which it was."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return super().handle_request(_at_loopback(request))


class AsyncLoopbackNames(httpx.AsyncHTTPTransport):
    """The same for programs with a loop."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await super().handle_async_request(_at_loopback(request))


def is_loopback_name(url: str) -> bool:
    """Whether the URL's host is a name below ``localhost``."""
    return (urlsplit(url).hostname or "").endswith(SUFFIX)


def mounts() -> dict[str, httpx.BaseTransport | None]:
    """For an ``httpx.Client`` that goes to other hosts too."""
    return {f"all://*{SUFFIX}": LoopbackNames()}


def _at_loopback(request: httpx.Request) -> httpx.Request:
    # A new one: answers and cookies belong to the address that was asked for.
    return httpx.Request(
        request.method,
        request.url.copy_with(host="127.0.0.1"),
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )
