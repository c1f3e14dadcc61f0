"""Starts a kernel and waits for it to answer: the proof that an environment can run notebooks.

Run as a program, in the service's own Python, by ``images/kernel.py``: the kernel's command, its
variables and the seconds to wait come as JSON on standard input. Exit code 0: it answered; 1: the
last line printed says why not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def check(argv: list[str], variables: dict[str, str], seconds: float) -> str:
    """Empty if the kernel answers ``kernel_info`` and a cell, else what it printed last."""
    from jupyter_client.blocking.client import BlockingKernelClient
    from jupyter_client.connect import write_connection_file

    with tempfile.TemporaryDirectory(prefix="notebooks-kernel-") as scratch:
        here = Path(scratch)
        file, _ = write_connection_file(str(here / "connection.json"))
        command = [part.replace("{connection_file}", file) for part in argv]
        output = here / "output"
        home = {"HOME": scratch, "IPYTHONDIR": scratch, "JUPYTER_RUNTIME_DIR": scratch}
        path = f"{Path(argv[0]).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with output.open("wb") as out:
            process = subprocess.Popen(
                command,
                cwd=scratch,
                env={**variables, **home, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        client: Any = BlockingKernelClient()
        try:
            client.load_connection_file(file)
            client.start_channels()
            deadline = time.monotonic() + seconds
            while True:
                # Without a manager the client does not notice that the kernel has died.
                try:
                    client.wait_for_ready(timeout=2)
                    break
                except RuntimeError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise
            reply = client.execute("1 + 1", reply=True, timeout=seconds / 3)
            return "" if reply["content"]["status"] == "ok" else str(reply["content"])
        except Exception as error:  # whatever goes wrong, the kernel did not answer
            printed = output.read_text(errors="replace").strip().splitlines()
            return printed[-1] if printed else f"{type(error).__name__}: {error}"
        finally:
            client.stop_channels()
            process.kill()
            process.wait()


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    problem = check(asked["argv"], asked["env"], asked["seconds"])
    if problem:
        print(problem)
    sys.exit(1 if problem else 0)
