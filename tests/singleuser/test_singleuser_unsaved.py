"""unsaved.py on real repositories, friendly and hostile."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from singleuser_server import Server

from notebooks_service.singleuser import unsaved as program
from small_forge import git


def test_a_fresh_clone_has_nothing_unsaved(server: Server) -> None:
    server.clone()
    assert server.unsaved() == {
        "repository": True,
        "files": [],
        "commits": [],
        "branches": [],
        "stashes": [],
        "more": False,
        "clean": True,
    }


def test_a_fresh_clone_of_an_older_commit_has_nothing_unsaved(server: Server, project: Any) -> None:
    server.variables["NOTEBOOKS_COMMIT"] = project.shas[0]
    server.clone()
    assert server.unsaved()["clean"] is True


def test_every_kind_of_change_is_named(server: Server, project: Any) -> None:
    project.commit(a="a\n", b="b\n", c="c\n" * 50)
    server.variables["NOTEBOOKS_COMMIT"] = project.commit(ignored="x")
    server.clone()
    folder = server.folder
    (folder / "a.txt").write_text("changed\n")
    (folder / "b.txt").unlink()
    server.git("mv", "c.txt", "moved c.txt")
    (folder / "staged.txt").write_text("x")
    server.git("add", "staged.txt")
    (folder / "new\nline ü.txt").write_text("x")
    (folder / "results").mkdir()
    (folder / "results" / "one.csv").write_text("x")
    (folder / "results" / "two.csv").write_text("x")
    (folder / ".git" / "info" / "exclude").write_text("*.log\n")
    (folder / "ignored.log").write_text("x")
    found = server.unsaved()
    assert {(file["path"], file["state"]) for file in found["files"]} == {
        ("a.txt", "modified"),
        ("b.txt", "deleted"),
        ("moved c.txt", "renamed"),
        ("staged.txt", "added"),
        ("new\nline ü.txt", "untracked"),
        ("results/", "untracked"),
    }
    assert found["clean"] is False
    assert found["commits"] == found["branches"] == found["stashes"] == []


def test_commits_on_every_branch_and_stashes(server: Server) -> None:
    server.clone()
    server.git("commit", "-q", "--allow-empty", "-m", "First of mine")
    server.git("checkout", "-q", "-b", "idea")
    server.git("commit", "-q", "--allow-empty", "-m", "An idea")
    server.git("checkout", "-q", "--detach")
    server.git("commit", "-q", "--allow-empty", "-m", "Nowhere")
    (server.folder / "data.txt").write_text("stashed\n")
    server.git("stash", "push", "-q", "-m", "For later")
    found = server.unsaved()
    assert {commit["title"] for commit in found["commits"]} == {
        "First of mine",
        "An idea",
        "Nowhere",
    }
    assert {(each["name"], each["commits"]) for each in found["branches"]} == {
        ("main", 1),
        ("idea", 2),
    }
    assert found["stashes"] == ["On (no branch): For later"]
    assert all(len(commit["sha"]) == 40 for commit in found["commits"])
    server.git("push", "-q", "origin", "main", "idea")
    assert [commit["title"] for commit in server.unsaved()["commits"]] == ["Nowhere"]


def test_lists_are_bounded(server: Server) -> None:
    server.clone()
    for number in range(150):
        (server.folder / f"new{number}").write_text("x")
    for number in range(105):
        server.git("commit", "-q", "--allow-empty", "-m", f"{number} " + "x" * 500)
    found = server.unsaved()
    assert (len(found["files"]), len(found["commits"]), found["more"]) == (100, 100, True)
    assert found["branches"] == [{"name": "main", "commits": 105}]
    assert max(len(commit["title"]) for commit in found["commits"]) == 300


def test_an_empty_repository(server: Server) -> None:
    server.folder.mkdir(parents=True)
    server.git("init", "-q")
    assert server.unsaved()["clean"] is True
    (server.folder / "x").write_text("x")
    assert server.unsaved()["files"] == [{"path": "x", "state": "untracked"}]


def test_a_conflict(server: Server) -> None:
    server.clone()
    server.git("checkout", "-q", "-b", "other")
    (server.folder / "data.txt").write_text("theirs\n")
    server.git("commit", "-qam", "Theirs")
    server.git("checkout", "-q", "main")
    (server.folder / "data.txt").write_text("ours\n")
    server.git("commit", "-qam", "Ours")
    assert server.try_git("merge", "other").returncode != 0
    assert server.unsaved()["files"] == [{"path": "data.txt", "state": "conflict"}]


def test_no_repository(server: Server, tmp_path: Path) -> None:
    server.folder.mkdir(parents=True)
    assert server.unsaved()["repository"] is False
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (server.folder / ".git").symlink_to(elsewhere)
    assert server.unsaved()["repository"] is False
    (server.folder / ".git").unlink()
    (server.folder / ".git").write_text(f"gitdir: {elsewhere}\n")
    assert server.unsaved()["repository"] is False
    assert server.run("unsaved.py").code == 2


def test_looking_changes_nothing(server: Server) -> None:
    server.clone()
    (server.folder / "data.txt").touch()
    index = server.folder / ".git" / "index"
    before = (index.stat().st_mtime_ns, index.stat().st_ino)
    server.unsaved()
    assert (index.stat().st_mtime_ns, index.stat().st_ino) == before


def test_nothing_of_a_hostile_repository_is_run(server: Server, tmp_path: Path) -> None:
    server.clone()
    witness = tmp_path / "was-run"
    evil = tmp_path / "evil"
    evil.write_text(f'#!/bin/sh\necho "$0 $*" >> {witness}\ncat\n')
    evil.chmod(0o755)
    hooks = server.folder / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for hook in (
        "post-index-change",
        "post-checkout",
        "reference-transaction",
        "fsmonitor-watchman",
    ):
        (hooks / hook).unlink(missing_ok=True)
        (hooks / hook).symlink_to(evil)
    (server.folder / ".gitattributes").write_text("* filter=evil diff=evil text=auto\n")
    (server.folder / "data.txt").write_text("changed, same length as nothing\n")
    for key, value in {
        "core.fsmonitor": str(evil),
        "core.hooksPath": str(hooks),
        "core.pager": str(evil),
        "core.sshCommand": str(evil),
        "core.editor": str(evil),
        "filter.evil.clean": str(evil),
        "filter.evil.smudge": str(evil),
        "filter.evil.process": str(evil),
        "filter.evil.required": "true",
        "diff.evil.textconv": str(evil),
        "diff.evil.command": str(evil),
        "diff.external": str(evil),
        "gpg.program": str(evil),
        "log.showSignature": "true",
        "alias.status": f"!{evil}",
        "credential.helper": str(evil),
        "remote.origin.url": f"ext::{evil}",
        "remote.origin.promisor": "true",
        "remote.origin.partialclonefilter": "blob:none",
        "protocol.ext.allow": "always",
        "uploadpack.packObjectsHook": str(evil),
        "core.worktree": "/",
    }.items():
        server.git("config", key, value)
    with (server.folder / ".git" / "config").open("a") as config:
        config.write(f"[include]\n\tpath = {tmp_path}/more\n")
    (tmp_path / "more").write_text(f'[filter "hidden"]\n\tclean = {evil}\n')
    (server.folder / ".git" / "info" / "attributes").write_text("*.txt filter=hidden\n")
    # A submodule with a configuration of its own, and a missing object that a promisor would have.
    nested = server.folder / "nested"
    nested.mkdir()
    git("init", "-q", cwd=nested)
    git("config", "core.fsmonitor", str(evil), cwd=nested)
    head = server.folder / ".git" / "refs" / "heads" / "promised"
    head.write_text("e" * 40 + "\n")
    witness.unlink(missing_ok=True)
    found = server.unsaved()
    assert not witness.exists(), witness.read_text()
    assert found["repository"] is True
    assert {"path": "data.txt", "state": "modified"} in found["files"]
    head.unlink()
    assert not witness.exists()
    server.git("config", "--unset", "core.worktree")
    server.try_git("status")
    assert "evil" in witness.read_text()  # a plain git would have run it


def test_a_filter_that_cannot_be_named_is_not_risked(server: Server) -> None:
    server.clone()
    server.git("config", "filter.a=b.clean", "touch /tmp/x")
    found = server.unsaved()
    assert (found["repository"], found["more"], found["clean"]) == (False, True, False)


def test_the_time_is_limited(server: Server) -> None:
    server.clone()
    late = program.Git(server.folder)
    late._end = time.monotonic() - 1
    assert late.run("status") is None
    assert late.cut


def test_a_cut_list_of_files_loses_only_its_last() -> None:
    one = b"1 .M N... 100644 100644 100644 a b x\0"
    assert program.read_status(one + b"? whole\0? ha") == [
        {"path": "x", "state": "modified"},
        {"path": "whole", "state": "untracked"},
    ]
