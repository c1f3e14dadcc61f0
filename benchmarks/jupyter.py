"""Talks to a Jupyter server as a browser would: first HTTP answer, first executed cell.

Used by the benchmarks for every contender alike, so that none is measured by another yardstick.
"""

from __future__ import annotations

import json
import time
import uuid
from urllib.parse import urlencode, urlsplit, urlunsplit

import httpx
from websockets.sync.client import connect

DEADLINE = 600.0


def wait_for_answer(client: httpx.Client, url: str, deadline: float = DEADLINE) -> float:
    """Ask ``<url>api`` until a Jupyter server answers with its version; returns the time (monotonic)."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        try:
            answer = client.get(f"{url}api", follow_redirects=False)
            if answer.status_code == 200 and "version" in answer.json():
                return time.monotonic()
        except (httpx.TransportError, ValueError):
            pass
        time.sleep(0.01)  # the interval of the poll, not a wait for luck
    raise TimeoutError(f"no Jupyter server answered at {url} within {deadline:.0f} s")


def execute_first_cell(client: httpx.Client, url: str, token: str, code: str) -> tuple[float, str]:
    """Start a kernel, run ``code`` in it; returns the time (monotonic) of its reply and its output."""
    headers = {"Authorization": f"token {token}"}
    kernel = client.post(f"{url}api/kernels", headers=headers, json={}).raise_for_status().json()
    parts = urlsplit(f"{url}api/kernels/{kernel['id']}/channels")
    query = urlencode({"session_id": uuid.uuid4().hex})
    address = urlunsplit(("ws", parts.netloc, parts.path, query, ""))
    message_id = uuid.uuid4().hex
    request = {
        "header": {
            "msg_id": message_id,
            "msg_type": "execute_request",
            "username": "",
            "session": uuid.uuid4().hex,
            "version": "5.3",
        },
        "parent_header": {},
        "metadata": {},
        "content": {"code": code, "silent": False, "store_history": False, "allow_stdin": False},
        "channel": "shell",
    }
    output: list[str] = []
    with connect(address, additional_headers=headers, max_size=None) as socket:
        socket.send(json.dumps(request))
        while True:
            message = json.loads(socket.recv(timeout=DEADLINE))
            if message.get("parent_header", {}).get("msg_id") != message_id:
                continue
            if message["msg_type"] == "stream":
                output.append(message["content"]["text"])
            if message["msg_type"] == "execute_reply":
                if message["content"]["status"] != "ok":
                    raise RuntimeError(f"the cell failed: {message['content']}")
                answered = time.monotonic()
                break
        # The output may follow the reply on its own channel; it is not part of the measured time.
        while not output:
            message = json.loads(socket.recv(timeout=10))
            if message["msg_type"] == "stream":
                output.append(message["content"]["text"])
    return answered, "".join(output)
