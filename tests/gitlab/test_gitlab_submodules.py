"""Reading ``.gitmodules``: what git would read, and which project of this forge an address means."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooks_service.gitlab.submodules import is_good_name, parse, project_of

FORGE = "https://git.example.org/gitlab"
HOLDER = "group/sub/app"


@pytest.mark.parametrize(
    ("url", "project"),
    [
        ("../lib.git", "group/sub/lib"),
        ("../lib", "group/sub/lib"),
        ("../../lib", "group/lib"),
        ("../../../other/lib.git", "other/lib"),
        ("./../lib/", "group/sub/lib"),
        ("https://git.example.org/gitlab/group/lib.git", "group/lib"),
        ("https://git.example.org:443/gitlab/group/lib", "group/lib"),
        ("http://git.example.org/gitlab/group/lib", "group/lib"),
        ("https://user:secret@git.example.org/gitlab/group/lib.git", "group/lib"),
        ("https://GIT.example.org/gitlab/group/lib.git/", "group/lib"),
        ("https://git.example.org/gitlab/gr%6Fup/lib", "group/lib"),
        ("git@git.example.org:group/lib.git", "group/lib"),
        ("git.example.org:group/deep/er/lib", "group/deep/er/lib"),
        ("ssh://git@git.example.org/group/lib.git", "group/lib"),
        ("ssh://git@git.example.org:2222/group/lib.git", "group/lib"),
        # Elsewhere, or nowhere.
        ("https://github.com/group/lib", None),
        ("https://git.example.org.evil.example/gitlab/group/lib", None),
        ("https://git.example.org@evil.example/gitlab/group/lib", None),
        ("https://git.example.org:8443/gitlab/group/lib", None),
        ("https://git.example.org/group/lib", None),
        ("https://git.example.org/gitlabx/group/lib", None),
        ("https://git.example.org/gitlab/../group/lib", None),
        ("https://git.example.org/gitlab/group/..%2Fx", None),
        ("https://git.example.org/gitlab/group/lib?x=1", None),
        ("https://git.example.org/gitlab/lib", None),
        ("https://git.example.org:port/gitlab/group/lib", None),
        ("https://[bad/gitlab/group/lib", None),
        ("../../../../lib", None),
        ("../../../../../../etc/passwd", None),
        ("./inside", None),
        ("file:///srv/group/lib.git", None),
        ("/srv/group/lib.git", None),
        ("group/lib", None),
        ("ext::sh -c id", None),
        ("ext::git.example.org:group/lib", None),
        ("fd::7", None),
        ("git://git.example.org/group/lib", None),
        ("ssh://git@evil.example/group/lib", None),
        ("git@evil.example:group/lib", None),
        ("-oProxyCommand=id@git.example.org:group/lib", None),
        ("--upload-pack=id", None),
        ("ssh://-oProxyCommand=id/group/lib", None),
        ("git@git.example.org:-x/lib", None),
        ("git@git.example.org:../lib", None),
        ("", None),
    ],
)
def test_which_project_an_address_means(url: str, project: str | None) -> None:
    assert project_of(url, FORGE, HOLDER) == project


def test_at_a_forge_with_a_port_the_port_has_to_be_that() -> None:
    forge = "http://127.0.0.1:8001"
    assert project_of("http://127.0.0.1:8001/group/lib", forge, HOLDER) == "group/lib"
    assert project_of("http://127.0.0.1:8000/group/lib", forge, HOLDER) is None
    assert project_of("http://127.0.0.1/group/lib", forge, HOLDER) is None


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("libs/one", True),
        ("größe 1", True),
        ("..", False),
        ("../x", False),
        ("a/../b", False),
        ("a/.GIT/hooks", False),
        ("git~1", False),
        ("-x", False),
        ("/etc", False),
        ("a//b", False),
        ("a\\b", False),
        ("a\nb", False),
        ("", False),
        ("x" * 501, False),
    ],
)
def test_names_that_lead_nowhere_else(name: str, good: bool) -> None:
    assert is_good_name(name) is good


def as_git_reads(text: str, tmp_path: Path) -> dict[str, dict[str, str]] | None:
    """What git itself finds, or None where it refuses the file."""
    file = tmp_path / "gitmodules"
    file.write_bytes(text.encode())
    command = ["git", "config", "--no-includes", "-z", "--file", str(file), "--list"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        return None
    found: dict[str, dict[str, str]] = {}
    for entry in done.stdout.decode().split("\0")[:-1]:
        key, newline, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, dot, variable = rest.rpartition(".")
        if section == "submodule" and dot and newline:
            found.setdefault(name, {})[variable] = value
    return found


@pytest.mark.parametrize(
    "text",
    [
        '[submodule "one"]\n\tpath = libs/one\n\turl = ../one.git\n',
        '[submodule "a"] path = x\n[submodule "b"]\nurl=y\n',
        '[submodule "o\\"n\\\\e"]\n\tpath = "a # b" ; comment\n',
        '[submodule "x"]\n\tpath = a\\\nb\n\turl = "two  spaces"  kept\n',
        '[Submodule "x"]\n\tPATH = a\n',
        '[submodule "x"]\npath = a\npath = b\n',
        '[submodule "x"]\npath\n',
        '[core]\n\tfsmonitor = id\n[submodule "x"]\n\tupdate = !id\n',
        "[include]\n\tpath = /etc/passwd\n",
        "# nothing\n",
        "",
    ],
)
def test_the_same_as_git(text: str, tmp_path: Path) -> None:
    assert dict(parse(text)) == as_git_reads(text, tmp_path)


LINES = st.sampled_from(
    [
        '[submodule "a"]',
        '[submodule "b c"]',
        "[core]",
        "path = x",
        'url = "y z"',
        "url = a\\",
        "# c",
        "; d",
        "",
        "  path=q # r",
        'path = "',
        "path = \\q",
        "[broken",
        "= x",
        "\tupdate = !id",
        'path = a"b"c ',
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(LINES, max_size=8))
def test_whatever_git_accepts_is_read_as_git_reads_it(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    text = "\n".join(lines) + "\n"
    theirs = as_git_reads(text, tmp_path_factory.mktemp("modules"))
    ours = dict(parse(text))
    assert theirs is None or ours == theirs


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_text_breaks_it(text: str) -> None:
    for name, _ in parse(text):
        is_good_name(name)
    project = project_of(text, FORGE, HOLDER)
    assert project is None or (".." not in project.split("/") and "/" in project)
