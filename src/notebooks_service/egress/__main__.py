"""``python -m notebooks_service.egress``: what servers in containers reach of the outside; ``notebooks up``
starts it where the setting ``allowed_egress`` says something.

It answers the way inside (``platform/chp/inside.js``) alone, which counts each server's connections.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys

from notebooks_service.egress.proxy import Egress, for_servers
from notebooks_service.errors import NotebooksError
from notebooks_service.settings import load_settings

MOST = 4000
"""Connections of all servers at once: each needs two files, and a process may have some thousands."""


class Door:
    """Hands connections from ``peer`` to the proxy, ``most`` at once, and closes all others."""

    def __init__(self, egress: Egress, peer: str, most: int = MOST) -> None:
        self._egress = egress
        self._peer = peer
        self._most = most
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("peername")[0] != self._peer or self._open >= self._most:
            writer.close()
            return
        self._open += 1
        try:
            await self._egress.serve(reader, writer)
        finally:
            self._open -= 1


async def run(door: Door, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    server = await asyncio.start_server(door.serve, host, port)
    await end.wait()
    server.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m notebooks_service.egress", description=__doc__)
    parser.add_argument("--host", required=True, help="address to listen on")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--peer", required=True, help="the address that may connect")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        egress = for_servers(load_settings())
    except NotebooksError as error:
        print(error.message, file=sys.stderr)
        return 1
    asyncio.run(run(Door(egress, arguments.peer), arguments.host, arguments.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
