"""A git server that refuses, stalls and breaks on request: what the embedded forge never does.

Run as a program: ``small_forge_program.py DIRECTORY PORT``. Repositories are bare ones below
DIRECTORY; ``rules.json`` there says who may do what and is read anew for each request;
``requests.jsonl`` tells what has come in. Git itself is git's own ``git http-backend``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from urllib.parse import unquote

import uvicorn

NOT_FOUND = (
    b"The project you were looking for could not be found or you don't have permission to view it."
)
NO_PUSH = b"You are not allowed to push code to this project."


class SmallForge:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        rules = json.loads((self.directory / "rules.json").read_text())
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        path, query = scope["path"], scope["query_string"].decode()
        token = self.token(headers, rules.get("logins", ["oauth2"]))
        self.note(path=path, query=query, method=scope["method"], headers=headers)
        rights = rules["tokens"].get(token)
        if path.startswith("/api/v4/projects/"):
            await self.project(path.rsplit("/", 1)[-1], rules, rights, send)
            return
        if rules.get("answer"):
            status, kind, text = rules["answer"]
            await answer(send, status, text.replace("TOKEN", token).encode(), kind)
            return
        if rights is None:
            realm = [(b"www-authenticate", b'Basic realm="forge-realm"')]
            await answer(send, 401, b"HTTP Basic: Access denied.", extra=realm)
            return
        project = unquote(path).strip("/").partition(".git/")[0]
        if project in rules.get("redirects", {}):
            location = rules["redirects"][project].encode()
            await answer(send, 301, b"", extra=[(b"location", location)])
            return
        if project not in rights:
            await answer(send, 404, NOT_FOUND)
            return
        if ".git/info/lfs/" in path:
            await self.large_files(path, scope, headers, receive, rules, send)
            return
        if "git-receive-pack" in path + query and rights[project] != "write":
            await answer(send, 403, NO_PUSH)
            return
        if rules.get("stall") and scope["method"] == "POST":
            await self.stall(receive)
            return
        await self.git(scope, headers, receive, send, cut=rules.get("cut"))

    async def project(self, number, rules, rights, send) -> None:
        """A project by its id: ``ids`` has its path, ``api_answer`` has something else to say."""
        if rules.get("api_answer"):
            status, kind, text = rules["api_answer"]
            await answer(send, status, text.encode(), kind, [(b"retry-after", b"7")])
            return
        name = rules.get("ids", {}).get(number)
        if rights is None:
            await answer(send, 401, b'{"message":"401 Unauthorized"}', "application/json")
        elif name not in rights:
            await answer(send, 404, b'{"message":"404 Project Not Found"}', "application/json")
        else:
            body = json.dumps({"id": int(number), "path_with_namespace": name}).encode()
            await answer(send, 200, body, "application/json")

    async def large_files(self, path, scope, headers, receive, rules, send) -> None:
        """Git LFS: objects are files in ``lfs/``; ``lfs_offer`` changes what a batch offers."""
        store = self.directory / "lfs"
        store.mkdir(exist_ok=True)
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if path.endswith("/objects/batch"):
            asked = json.loads(body)
            here = f"http://{headers['host']}{path.removesuffix('batch')}"
            rows = []
            for each in asked["objects"]:
                there = (store / each["oid"]).exists()
                action = {"href": here + each["oid"], **rules.get("lfs_offer", {})}
                if asked["operation"] == "upload":  # as GitLab does
                    action["header"] = {"Transfer-Encoding": "chunked"}
                row = {**each, "actions": {asked["operation"]: action}}
                if there == (asked["operation"] == "upload"):
                    del row["actions"]
                    if not there:
                        row["error"] = {"code": 404, "message": "Object does not exist"}
                rows.append(row)
            said = json.dumps({"transfer": "basic", "objects": rows}).encode()
            await answer(send, 200, said, "application/vnd.git-lfs+json")
            return
        file = store / path.rpartition("/")[2]
        if scope["method"] == "PUT":
            file.write_bytes(body)
            await answer(send, 200, b"")
        elif rules.get("lfs_answer"):
            await answer(send, *rules["lfs_answer"][:1], rules["lfs_answer"][1].encode())
        else:
            await answer(send, 200, file.read_bytes(), "application/octet-stream")

    def token(self, headers, logins) -> str:
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind == "Bearer":
            return value
        name, _, token = base64.b64decode(value).decode().partition(":") if value else ("", "", "")
        return token if name in logins else ""

    def note(self, **facts) -> None:
        with (self.directory / "requests.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")

    async def stall(self, receive) -> None:
        """Reads, answers nothing, and notes when the other side has gone."""
        self.note(stalled=True)
        while (await receive())["type"] != "http.disconnect":
            pass
        self.note(gone=True)

    async def git(self, scope, headers, receive, send, cut) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.directory),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "REMOTE_USER": "somebody",
            "REMOTE_ADDR": "127.0.0.1",
            "REQUEST_METHOD": scope["method"],
            "PATH_INFO": scope["path"],
            "QUERY_STRING": scope["query_string"].decode(),
            "CONTENT_TYPE": headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": headers.get("content-encoding", ""),
            "GIT_PROTOCOL": headers.get("git-protocol", ""),
        }
        if "content-length" in headers:
            environment["CONTENT_LENGTH"] = headers["content-length"]
        process = await asyncio.create_subprocess_exec(
            "git",
            "http-backend",
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

        async def feed() -> None:
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    process.kill()
                    break
                # git may have answered without reading all of it.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    process.stdin.write(message.get("body", b""))
                    await process.stdin.drain()
                more = message.get("more_body", False)
            process.stdin.close()

        feeding = asyncio.create_task(feed())
        try:
            status, given = 200, [(b"set-cookie", b"_session=forge-cookie; Path=/")]
            while line := (await process.stdout.readline()).strip():
                name, _, value = line.partition(b":")
                if name.lower() == b"status":
                    status = int(value.split()[0])
                else:
                    given.append((name.lower(), value.strip()))
            await send({"type": "http.response.start", "status": status, "headers": given})
            sent = 0
            while piece := await process.stdout.read(65536):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                sent += len(piece)
                if cut and scope["method"] == "POST" and sent > cut:
                    return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            await feeding
        finally:
            feeding.cancel()
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            # A reader that has stopped would never see that the pipe has closed.
            while await process.stdout.read(65536):
                pass
            await process.wait()


async def answer(send, status, body, kind="text/plain; charset=utf-8", extra=()) -> None:
    headers = [(b"content-type", kind.encode()), (b"set-cookie", b"_session=forge-cookie"), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        SmallForge(Path(sys.argv[1])),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        lifespan="off",
    )
