"""`notebooks doctor` as a command: what is wrong usage, where the token comes from, how it looks."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from notebooks_service.cli import main
from notebooks_service.doctor.examine import Asked, examine
from notebooks_service.doctor.findings import note, ok, problem, unchecked
from notebooks_service.doctor.report import as_facts, as_text
from scripted_gitlab import ScriptedGitLab


@pytest.mark.parametrize(
    "arguments",
    [
        ["--forge", "gitlab"],
        ["--forge", "ftp://gitlab.example.org"],
        ["--forge", "https://me:canary-password@gitlab.example.org"],
        ["--forge", "https://gitlab.example.org:99999999"],
        ["--hub", "http://[bad"],
        ["--token", "canary-password"],
        ["--token-file", "/nowhere/at/all"],
        ["--token-file", "a", "--ask-token"],
        ["--ask-token"],
    ],
)
def test_wrong_usage(
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    try:
        code = main(["doctor", *arguments, "--data", str(tmp_path / "data")])
    except SystemExit as end:
        assert isinstance(end.code, int)
        code = end.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert said.err
    assert "Traceback" not in said.err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "content", ["two canary-words", "canary\x1b[0m", "canary-\xe4", "a\0canary"]
)
def test_a_token_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = tmp_path / "token"
    file.write_text(content)
    assert main(["doctor", "--token-file", str(file)]) == 2
    said = capsys.readouterr()
    assert "canary" not in said.out + said.err


@pytest.mark.parametrize("way", ["file", "environment"])
def test_the_command(
    gitlab: ScriptedGitLab,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """It looks at everything, in words or as JSON, and leaves nothing behind."""
    token = "glpat-canary-of-the-command"
    gitlab.json("GET /api/v4/metadata", {"version": "17.8.0"})
    arguments = ["doctor", "--forge", gitlab.url]
    if way == "file":
        (tmp_path / "token").write_text(f"{token}\n")
        arguments += ["--token-file", str(tmp_path / "token"), "--json"]
    else:
        monkeypatch.setenv("NOTEBOOKS_DOCTOR_TOKEN", token)
    code = main(arguments)
    said = capsys.readouterr()
    assert gitlab.asked[0].headers["Authorization"] == f"Bearer {token}"
    assert token not in said.out + said.err
    assert not (tmp_path / "data").exists()
    if way == "file":
        facts = json.loads(said.out)
        assert set(facts) == {"forge", "hub", "data", "counts", "findings"}
        assert facts["forge"] == gitlab.url
        assert code == (1 if facts["counts"]["problem"] else 0)
        assert set(facts["findings"][0]) == {"code", "level", "sentence", "advice"}
    else:
        assert "GitLab 17.8.0 is supported" in said.out


def test_how_it_looks() -> None:
    text = as_text(
        [ok("a.b", "It is."), problem("c.d", "It is not.", "Make it."), note("e.f", "Oh.")]
    )
    assert text == (
        "ok           It is. [a.b]\n"
        "problem      It is not. [c.d]\n"
        "             → Make it.\n"
        "note         Oh. [e.f]\n"
        "\n"
        "1 problem, 1 note, 1 ok."
    )
    assert as_text([unchecked("a.b", "Who knows.")]).endswith(
        "1 not checked. Nothing stands in the way."
    )
    assert as_facts([ok("a.b", "It is.")], forge="x")["counts"]["ok"] == 1


async def test_a_mistake_of_its_own_hides_nothing(gitlab: ScriptedGitLab) -> None:
    def broken() -> httpx.AsyncBaseTransport:
        raise KeyError("canary-of-a-mistake")

    asked = Asked(forge=gitlab.url)
    done = await examine(asked, areas=["data", "forge"], transport=broken)
    assert [one.code for one in done.findings] == ["settings.read", "data.new", "doctor.stumbled"]
    assert done.exit_code == 1
    assert "canary" not in str(done.findings)
    with pytest.raises(KeyError):
        await examine(replace(asked, debug=True), areas=["forge"], transport=broken)


async def test_what_was_not_named_is_not_checked(
    gitlab: ScriptedGitLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = await examine(Asked(), areas=["hub", "forge"])
    found = {one.code: one.level for one in done.findings}
    assert found == {
        "settings.read": "ok",
        "hub.not-named": "not checked",
        "config.unread": "not checked",
        "forge.not-named": "not checked",
    }
    gitlab.json("GET /api/v4/metadata", {"version": "17.8.0"})
    done = await examine(Asked(forge=gitlab.url, project="a/b"), areas=["forge"])
    assert "project.not-named" in [one.code for one in done.findings]
    assert [one.path for one in gitlab.asked if "projects" in one.path] == []


@pytest.mark.parametrize("url", ["http://[bad", "nonsense", "http://a b", "https://x:99999999", ""])
async def test_a_wrong_address_in_the_settings(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("NOTEBOOKS_FORGE_URL", url)
    monkeypatch.setenv("NOTEBOOKS_HUB_URL", url)
    done = await examine(Asked(), areas=["hub", "forge"])
    wanted = ["settings.read", "settings.no-address", "settings.no-address"]
    assert [one.code for one in done.findings] == wanted
    assert done.exit_code == 1
