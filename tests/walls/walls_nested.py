"""Run by ``test_walls_attack.py`` as an ordinary user: a victim, and an attacker behind a wall of this user's."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from notebooks_service.settings import Settings
from notebooks_service.walls.view import reading, writing
from notebooks_service.walls.wall import Inside, Walls, works

ATTACK = Path(__file__).with_name("walls_attack.py")


def main() -> None:
    root, way = Path(sys.argv[1]), sys.argv[2]
    settings = Settings(data=root / "data")
    for name in ("secrets", "theirs", "mine", "environment"):
        (settings.data / name).mkdir(mode=0o700, parents=True)
    (settings.data / "secrets" / "token").write_text("x" * 64)
    (settings.data / "theirs" / "notes.txt").write_text("private")
    Path("/dev/shm/private").write_text("private")
    Path("/tmp/private").write_text("private")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0abstract")
    listener.listen(8)
    victim = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={"WHOSE": "SOMEBODY"}
    )
    data = settings.data
    targets = {
        "read": [str(data / "secrets"), str(data / "secrets" / "token"), str(data / "theirs" / "notes.txt"),
                 "/dev/shm/private", "/tmp/private"],
        "write": [str(data / "theirs"), str(data / "environment")],
        "link": [str(data / "theirs" / "notes.txt")],
        "processes": ["SOMEBODY"],
        "signal": [victim.pid],
        "trace": [victim.pid],
        "memory": [victim.pid],
        "connect": ["@abstract"],
        "gain": ["rights"],
    }  # fmt: skip
    walls = Walls(way, settings)  # type: ignore[arg-type]
    if way != "none":
        assert works(walls, settings.data) is None, works(walls, settings.data)
        targets["escape"] = ["user namespace"]
    asked = data / "mine" / "targets.json"
    asked.write_text(json.dumps(targets))
    inside = Inside(
        "person:mallory",
        (*writing(data / "mine"), *reading(data / "environment", ATTACK.parent)),
    )
    command = [sys.executable, "-I", str(ATTACK), str(asked)]
    environment = {"HOME": str(data / "mine"), "PATH": os.defpath}
    with walls.around(inside, command, directory=data / "mine", environment=environment) as call:
        subprocess.run(
            call.command, env=call.environment, cwd=call.directory, pass_fds=call.descriptors
        )
    victim.kill()


main()
