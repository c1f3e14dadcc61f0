"""Runs in a job's gate: listens on ports of the loopback that the job shares, and hands each connection to a
socket that only the gate can see. Carried into the gate by ``containers.py``; standard library only.

    python3 gate_inside.py DIRECTORY PORT=SOCKET…
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def hands_to(
    path: Path,
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner = await asyncio.open_unix_connection(str(path))
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(pump(reader, inner[1]), pump(inner[0], writer))
        finally:
            writer.close()
            inner[1].close()

    return serve


async def main() -> None:
    directory = Path(sys.argv[1])
    for way in sys.argv[2:]:
        port, _, name = way.partition("=")
        await asyncio.start_server(hands_to(directory / name), "127.0.0.1", int(port))
    print("open", flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    asyncio.run(main())
