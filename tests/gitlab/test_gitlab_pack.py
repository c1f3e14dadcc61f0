"""A commit made of files that a repository has: real git takes it, checks it and reads it back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from notebooks_service.gitlab.pack import Objects, TreeFile, commit, tree
from notebooks_service.gitlab.receive_pack import NO_SHA, refusal, request_body

REF = "refs/heads/notebooks/env-1"
WHO = "Notebooks <notebooks@example.org>"
FILES = {
    "requirements.txt": "iniconfig\n",
    "a/b/c.txt": "deep",
    "a.txt": "sorts before a/",
    "a0": "sorts behind a/",
    "wörter/ü.txt": "not ASCII",
    "run.sh": "#!/bin/sh\n",
    "unused.txt": "not in the commit that is made",
}


def git(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, input=stdin)
    return done.stdout


def rows(repository: Path, commit: str) -> list[TreeFile]:
    listed = git("-C", repository, "ls-tree", "-rz", commit).decode().split("\0")
    found = []
    for row in listed[:-1]:
        head, _, path = row.partition("\t")
        mode, _, name = head.split(" ")
        found.append(TreeFile(path, mode, name))
    return found


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    git("init", "-q", work)
    for path, text in FILES.items():
        (work / path).parent.mkdir(parents=True, exist_ok=True)
        (work / path).write_text(text)
    (work / "run.sh").chmod(0o755)
    (work / "link").symlink_to("a.txt")
    git("-C", work, "add", "-A")
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    git(*identity, "-C", work, "commit", "-qm", "one")
    git("clone", "-q", "--bare", work, tmp_path / "bare.git")
    return tmp_path / "bare.git"


def push(repository: Path, sha: str, pack: bytes) -> str | None:
    body = request_body(REF, NO_SHA, sha, pack)
    command = ("-c", "transfer.fsckObjects=true", "receive-pack", "--stateless-rpc", repository)
    return refusal(git(*command, stdin=body), REF)


def test_it_is_what_git_would_have_made(repository: Path) -> None:
    files = [row for row in rows(repository, "HEAD") if row.path != "unused.txt"]
    objects = Objects()
    assert tree(objects, rows(repository, "HEAD")) == (
        git("-C", repository, "rev-parse", "HEAD^{tree}").decode().strip()
    )
    objects = Objects()
    ours = objects.add("blob", b"image_build: {script: notebooks image build}\n")
    root = tree(objects, [*reversed(files), TreeFile(".gitlab-ci.yml", "100644", ours)])
    sha = commit(objects, root, WHO, 1_700_000_000, "An environment\n\nMore.")
    assert len(objects.pack()) < 1500, "it holds trees, a commit and one file"
    assert push(repository, sha, objects.pack()) is None
    git("-C", repository, "fsck", "--strict", "--full")
    there = {row.path: row for row in rows(repository, REF)}
    assert there.pop(".gitlab-ci.yml").blob == ours
    assert sorted(there.values(), key=lambda row: row.path) == sorted(
        files, key=lambda row: row.path
    )
    assert git("-C", repository, "log", "-1", "--format=%an %ae %at %B", REF).decode().split() == [
        *("Notebooks", "notebooks@example.org", "1700000000", "An", "environment", "More.")
    ]


def test_a_whole_directory_goes_by_its_id(repository: Path) -> None:
    directory = git("-C", repository, "rev-parse", "HEAD:a").decode().strip()
    objects = Objects()
    root = tree(objects, [TreeFile("a", "040000", directory)])
    made = commit(objects, root, WHO, 1, "x")
    assert push(repository, made, objects.pack()) is None
    assert git("-C", repository, "show", f"{made}:a/b/c.txt") == b"deep"


def test_git_refuses_a_file_that_it_has_not(repository: Path) -> None:
    objects = Objects()
    root = tree(objects, [TreeFile("a.txt", "100644", "1" * 40)])
    made = commit(objects, root, WHO, 1, "x")
    assert push(repository, made, objects.pack())
    assert git("-C", repository, "for-each-ref", REF) == b""


@pytest.mark.parametrize("path", ["", "/a", "a//b", "a/", "../a", "a/../b", ".git/config", "a\0b"])
def test_what_is_no_path_makes_no_tree(path: str) -> None:
    with pytest.raises(ValueError, match="no path"):
        tree(Objects(), [TreeFile(path, "100644", "1" * 40)])


def test_a_file_is_no_directory() -> None:
    with pytest.raises(ValueError, match="both"):
        tree(Objects(), [TreeFile("a", "100644", "1" * 40), TreeFile("a/b", "100644", "1" * 40)])
