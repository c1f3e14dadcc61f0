"""A branch by git's own protocol: the bytes against real git, the whole against the real forge."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from notebooks_service.gitlab.receive_pack import NO_SHA, refusal, request_body

REF = "refs/heads/notebooks/build-1"


def git(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["git", *arguments], check=True, capture_output=True, input=stdin)
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    bare = tmp_path / "bare.git"
    git("init", "-q", "--bare", bare)
    return bare


def commit(repository: Path) -> str:
    tree = git("-C", repository, "mktree").decode().strip()
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    return git(*identity, "-C", repository, "commit-tree", "-m", "one", tree).decode().strip()


def receive(repository: Path, body: bytes) -> bytes:
    answer = git("receive-pack", "--stateless-rpc", repository, stdin=body)
    return answer


def test_real_git_makes_and_removes_the_branch(repository: Path) -> None:
    sha = commit(repository)
    made = receive(repository, request_body(REF, NO_SHA, sha))
    assert refusal(made, REF) is None
    assert git("-C", repository, "rev-parse", REF).decode().strip() == sha
    gone = receive(repository, request_body(REF, sha, NO_SHA))
    assert refusal(gone, REF) is None
    assert git("-C", repository, "for-each-ref") == b""


def test_real_git_says_why_it_refuses(repository: Path) -> None:
    missing = "1" * 40
    answer = receive(repository, request_body(REF, NO_SHA, missing))
    assert refusal(answer, REF)
    assert git("-C", repository, "for-each-ref") == b""


@pytest.mark.parametrize("answer", [b"", b"zzzz", b"0000", b"000eunpack ok\n", b"<html>no</html>"])
def test_an_answer_that_does_not_say_ok_is_a_refusal(answer: bytes) -> None:
    assert refusal(answer, REF) is not None
