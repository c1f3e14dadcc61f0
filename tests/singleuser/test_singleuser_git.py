"""The git configuration and the credential helper of a server, with a real git."""

from __future__ import annotations

from pathlib import Path

import pytest
from singleuser_server import TOKEN, Server

from notebooks_service.singleuser import credential_helper, gitconfig

GATEWAY = "https://hub.example:8443/services/notebooks/git/"


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ({"path": "services/notebooks/git/g/p.git"}, True),
        ({"path": "/services/notebooks/git/g/p.git"}, True),
        ({"path": "services/notebooks/git"}, True),
        ({"path": "services/notebooks/gitlab/g/p.git"}, False),
        ({"path": "services/notebooks/git/../../x"}, False),
        ({"path": "services/notebooks/git/%2e%2e/%2e%2e/x"}, False),
        ({"path": "g/p.git"}, False),
        ({"path": ""}, False),
        ({"path": "services/notebooks/git/g/p.git", "protocol": "http"}, False),
        ({"path": "services/notebooks/git/g/p.git", "host": "hub.example"}, False),
        ({"path": "services/notebooks/git/g/p.git", "host": "evil.example:8443"}, False),
        ({"path": "services/notebooks/git/g/p.git", "host": "hub.example:8443@evil"}, False),
    ],
)
def test_only_the_gateway_gets_the_token(asked: dict[str, str], answered: bool) -> None:
    fields = {"protocol": "https", "host": "hub.example:8443", **asked}
    environ = {"NOTEBOOKS_GATEWAY_URL": GATEWAY, "JUPYTERHUB_API_TOKEN": TOKEN}
    expected = f"username=server\npassword={TOKEN}\n" if answered else None
    assert credential_helper.answer("get", fields, environ) == expected
    for action in ("store", "erase", ""):
        assert credential_helper.answer(action, fields, environ) is None


@pytest.mark.parametrize("gateway", ["", "ext::sh", "file:///x", "https://"])
def test_without_a_gateway_nobody_gets_it(gateway: str) -> None:
    environ = {"NOTEBOOKS_GATEWAY_URL": gateway, "JUPYTERHUB_API_TOKEN": TOKEN}
    assert (
        credential_helper.answer("get", {"protocol": "", "host": "", "path": ""}, environ) is None
    )


def test_the_helper_as_git_runs_it(server: Server) -> None:
    host = server.variables["NOTEBOOKS_GATEWAY_URL"].removeprefix("http://").rstrip("/")
    server.clone()
    asked = f"protocol=http\nhost={host}\npath=g/p.git\n\n"
    done = server.run("credential_helper.py", "get", given=asked)
    assert (done.code, done.errors) == (0, "")
    filled = git_credential(server, asked)
    assert f"password={TOKEN}" in filled.stdout
    other = git_credential(server, "protocol=https\nhost=github.com\npath=x\n\n")
    assert TOKEN not in other.stdout + other.stderr
    assert other.returncode != 0
    del server.variables["JUPYTERHUB_API_TOKEN"]
    none = server.run("credential_helper.py", "get", given=asked)
    assert "no token" in none.errors


def git_credential(server: Server, asked: str):  # type: ignore[no-untyped-def]
    import subprocess

    return subprocess.run(
        ["git", "credential", "fill"],
        cwd=server.folder,
        env=server.environment,
        input=asked,
        capture_output=True,
        text=True,
        timeout=60,
    )


def read(server: Server, key: str) -> str:
    server.folder.mkdir(parents=True, exist_ok=True)
    return server.git("config", "--get", key)


@pytest.mark.parametrize(
    ("name", "email", "expected"),
    [
        ("Ada", "ada@x.org", ("Ada", "ada@x.org")),
        ('"; rm -rf ~ #', "a@x.org", ('"; rm -rf ~ #', "a@x.org")),
        ("back\\slash \\n", "a@x.org", ("back\\slash \\n", "a@x.org")),
        ("two\nlines\r\n[alias]\tx", "a\n@x.org", ("two lines [alias] x", "a @x.org")),
        ("Ümlaut 名前 🦊", "ü@x.org", ("Ümlaut 名前 🦊", "ü@x.org")),
        ("", "", ("ada", "ada@users.noreply.forge.invalid")),
        (" .,;<> ", "<>", ("ada", "ada@users.noreply.forge.invalid")),
        ("x\x00\x1b[31mred\u202e", "a@x.org", None),
    ],
)
def test_the_author_survives_any_text(
    server: Server, name: str, email: str, expected: tuple[str, str] | None
) -> None:
    server.variables.update(NOTEBOOKS_AUTHOR_NAME=name.replace("\0", ""))
    server.variables.update(NOTEBOOKS_AUTHOR_EMAIL=email)
    assert server.run("gitconfig.py").code == 0
    found = (read(server, "user.name"), read(server, "user.email"))
    if expected is not None:
        assert found == expected
    assert found[0].isprintable()
    server.git("init", "-q")
    server.git("commit", "-q", "--allow-empty", "-m", "x")


def test_what_the_person_sets_stays_and_wins(server: Server) -> None:
    assert server.run("gitconfig.py").code == 0
    server.folder.mkdir(parents=True)
    server.git("config", "--global", "user.name", "Countess")
    server.git("config", "--global", "alias.st", "status")
    server.variables["NOTEBOOKS_AUTHOR_EMAIL"] = "new@example.org"
    assert server.run("gitconfig.py").code == 0
    assert read(server, "user.name") == "Countess"
    assert read(server, "user.email") == "new@example.org"
    assert read(server, "alias.st") == "status"
    own = server.directory / "gitconfig"
    assert own.read_text().count("[include]") == 1
    assert own.stat().st_mode & 0o777 == 0o600


def test_without_a_file_named_it_is_in_the_home(server: Server, tmp_path: Path) -> None:
    home = tmp_path / "home"
    written = gitconfig.write({**server.variables, "HOME": str(home)})
    assert written == home / ".gitconfig"
    assert "gitconfig.notebooks" in written.read_text()


def test_what_git_is_told(server: Server) -> None:
    assert server.run("gitconfig.py").code == 0
    gateway = server.variables["NOTEBOOKS_GATEWAY_URL"]
    assert read(server, f"url.{gateway}.insteadOf") == "http://forge.invalid/gitlab/"
    assert read(server, "push.autoSetupRemote") == "true"
    assert read(server, "push.default") == "simple"
    assert read(server, f"http.{gateway}.followRedirects") == "false"
    assert TOKEN not in (server.directory / "gitconfig.notebooks").read_text()


@pytest.mark.parametrize(
    "gateway", ["", "ftp://x/", 'http://x/"]\n[alias]\nx = !id', "http://x/\x1b", "http:///x"]
)
def test_a_wrong_address_is_refused(server: Server, gateway: str) -> None:
    server.variables["NOTEBOOKS_GATEWAY_URL"] = gateway
    ended = server.run("gitconfig.py")
    assert ended.code == 2
    assert "NOTEBOOKS_GATEWAY_URL" in ended.errors
    assert not (server.directory / "gitconfig").exists()


def test_an_address_with_quotes_stays_one_value(server: Server) -> None:
    server.variables["NOTEBOOKS_GATEWAY_URL"] = 'http://x/a"b\\c/'
    assert server.run("gitconfig.py").code == 0
    found = read(server, 'url.http://x/a"b\\c/.insteadOf')
    assert found == "http://forge.invalid/gitlab/"
