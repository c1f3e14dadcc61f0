"""What the supervisor's tests run as a process: a supervisor over two small web servers.

Usage: supervised_program.py DIRECTORY PORT PORT. Prints ``ready`` when both answer.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from notebooks_service.errors import PlatformFailed
from notebooks_service.platform.supervise import Part, Stopped, Supervisor

SERVER = """
import http.server, os, subprocess, sys
port, mark = int(sys.argv[1]), sys.argv[2]
# A child of a child in its own session, as a notebook server's kernels are.
script = "import os, sys, time; os.fork() and os._exit(0); os.setsid(); time.sleep(600)"
subprocess.run([sys.executable, "-c", script, mark])
print("serving", port, flush=True)
http.server.HTTPServer(("127.0.0.1", port), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
    except (urllib.error.URLError, OSError):
        return False
    return True


def main() -> int:
    directory = Path(sys.argv[1])
    run, logs = directory / "run", directory / "logs"
    for made in (run, logs):
        made.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(run=run, logs=logs, cwd=run, say=say, log_bytes=2000)
    try:
        with supervisor.supervising():
            supervisor.end_leftovers(["one", "two"])
            for name, text in zip(["one", "two"], sys.argv[2:], strict=True):
                port = int(text)
                command = [sys.executable, "-c", SERVER, text, str(directory)]
                if port == 0:
                    command = [sys.executable, "-c", "import sys; sys.exit('no such luck')"]
                part = Part(
                    name,
                    command,
                    dict(os.environ),
                    ready=lambda port=port: answers(port),
                    after_restart=lambda name=name: say(f"after {name}"),
                )
                supervisor.start(part)
            print("ready", flush=True)
            supervisor.watch()
    except Stopped:
        return 0
    except PlatformFailed as error:
        say(error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
