"""clone.py with a real git against a real git server, as the hub runs it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from singleuser_server import PROGRAMS, TOKEN, Server

from notebooks_service.singleuser import clone as program
from notebooks_service.singleuser import clone_git
from small_forge import SmallForgeProcess, git, wait_until


def files(directory: Path) -> dict[str, Any]:
    """Every file below and its content, to compare before and after."""
    return {
        str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_the_tip_of_a_branch_is_that_branch_and_tracks_it(server: Server, project: Any) -> None:
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert ended.last == {
        "message": f"The repository is at {project.shas[-1][:8]} on main.",
        "phase": "done",
        "folder": server.folder.name,
        "branch": "main",
        "upstream": "origin/main",
        "commit": project.shas[-1],
        "head": project.shas[-1],
        "new": True,
        "moved": False,
        "partial": False,
        "large_files": 0,
        "pointers": 0,
        "notes": [],
    }
    assert server.git("status", "--porcelain") == ""
    assert server.git("log", "--format=%s").splitlines()[-1] == "Root"
    assert (server.folder / "data.txt").read_text() == "2\n"
    assert server.git("config", "user.name") == 'Ada "Countess" Lovelace of \\ Ümlaut #1'
    assert [path.name for path in server.work.iterdir()] == [server.folder.name]


def test_work_is_pushed_to_the_tracked_branch(server: Server, project: Any) -> None:
    server.clone()
    (server.folder / "new.txt").write_text("new\n")
    server.git("add", ".")
    server.git("commit", "-q", "-m", "Mine")
    server.git("push", "-q")
    assert git("rev-parse", "main", cwd=project.bare) == server.git("rev-parse", "HEAD")
    author = git("log", "-1", "--format=%an|%ae", "main", cwd=project.bare)
    assert author == 'Ada "Countess" Lovelace of \\ Ümlaut #1|ada@example.org'
    project.commit("other", more="x")
    server.git("pull", "-q")
    assert "origin/other" in server.git("branch", "--remotes")


def test_an_older_commit_gets_a_branch_of_its_own(server: Server, project: Any) -> None:
    old = project.shas[0]
    server.variables["NOTEBOOKS_COMMIT"] = old
    ended = server.clone()
    assert ended.last["branch"] == f"main-{old[:8]}"
    assert ended.last["upstream"] is None
    assert ended.last["head"] == old
    assert server.git("branch", "--format=%(refname:short)").split() == [f"main-{old[:8]}"]
    assert (server.folder / "data.txt").read_text() == "0\n"
    server.git("commit", "-q", "--allow-empty", "-m", "Mine")
    server.git("push", "-q")
    assert git("rev-parse", "main", cwd=project.bare) == project.shas[-1]
    assert git("rev-parse", f"main-{old[:8]}", cwd=project.bare) == server.git("rev-parse", "HEAD")


def test_a_branch_with_slashes_and_odd_letters(server: Server, project: Any) -> None:
    branch = "feature/größe-#1;$(id)"
    sha = project.commit(branch, more="x")
    server.variables.update(NOTEBOOKS_BRANCH=branch, NOTEBOOKS_COMMIT=sha)
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert (ended.last["branch"], ended.last["upstream"]) == (branch, f"origin/{branch}")


def test_a_branch_that_is_gone_gets_one_of_its_own(server: Server, project: Any) -> None:
    server.variables["NOTEBOOKS_BRANCH"] = "was-deleted"
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert ended.last["branch"] == f"was-deleted-{project.shas[-1][:8]}"
    assert ended.last["upstream"] is None


def test_a_commit_on_no_branch_is_fetched(server: Server, project: Any) -> None:
    sha = project.commit("doomed", more="x")
    git("update-ref", "refs/merge-requests/1/head", sha, cwd=project.bare)
    git("branch", "-D", "doomed", cwd=project.bare)
    server.variables["NOTEBOOKS_COMMIT"] = sha
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert ended.last["head"] == sha
    assert server.unsaved()["clean"] is True


@pytest.mark.parametrize(
    ("tip", "taken", "expected"),
    [
        ("a" * 40, set(), ("main", True)),
        ("b" * 40, {"main"}, ("main-aaaaaaaa", False)),
        (None, set(), ("main-aaaaaaaa", False)),
        ("b" * 40, {"main", "main-aaaaaaaa"}, ("main-aaaaaaaa-2", False)),
        ("b" * 40, {"main-aaaaaaaa", "main-aaaaaaaa-2"}, ("main-aaaaaaaa-3", False)),
    ],
)
def test_which_local_branch(tip: str | None, taken: set[str], expected: tuple[str, bool]) -> None:
    assert program.local_branch("main", "a" * 40, tip, taken) == expected


def test_a_second_run_changes_nothing(server: Server) -> None:
    server.clone()
    (server.folder / "data.txt").write_text("edited\n")
    (server.folder / "new.txt").write_text("untracked\n")
    before = files(server.folder)
    ended = server.clone()
    assert ended.code == 0
    assert ended.last["message"] == "Your work is as you left it."
    assert (ended.last["new"], ended.last["moved"]) == (False, False)
    assert files(server.folder) == before


def test_a_second_run_needs_no_forge_and_says_where_the_work_is(
    server: Server, small_forge: SmallForgeProcess, project: Any
) -> None:
    server.clone()
    server.git("commit", "-q", "--allow-empty", "-m", "Mine")
    head = server.git("rev-parse", "HEAD")
    small_forge.save(answer=[503, "text/html", "<html>"])
    ended = server.clone()
    assert ended.code == 0
    assert ended.last["moved"] is True
    assert ended.last["head"] == head
    assert f"at {head[:8]} on main and no longer at {project.shas[-1][:8]}" in ended.last["message"]


def test_a_folder_that_is_no_repository_is_left_alone(server: Server) -> None:
    server.folder.mkdir(parents=True)
    (server.folder / "mine.txt").write_text("mine\n")
    ended = server.clone()
    assert ended.code == 0
    assert "no git repository" in ended.last["message"]
    assert [path.name for path in server.folder.iterdir()] == ["mine.txt"]
    (server.folder / "mine.txt").unlink()
    assert server.clone().last["new"] is True


def test_a_project_that_has_moved_keeps_its_work(
    server: Server, small_forge: SmallForgeProcess, project: Any
) -> None:
    server.clone()
    (server.folder / "new.txt").write_text("untracked\n")
    moved = f"elsewhere/renamed-{project.path.rsplit('-', 1)[-1]}"
    small_forge.repository(moved)
    git("push", "-q", "--mirror", str(small_forge.directory / f"{moved}.git"), cwd=project.bare)
    small_forge.allow(TOKEN, moved)
    server.variables["NOTEBOOKS_PROJECT"] = moved
    ended = server.clone()
    assert ended.code == 0
    assert f"now called {moved}" in ended.last["message"]
    assert (server.folder / "new.txt").exists()
    server.git("fetch", "-q")


def test_progress_is_told(server: Server, project: Any) -> None:
    project.shas.append(project.commit(**{f"file{number}": "x" * number for number in range(50)}))
    server.variables["NOTEBOOKS_COMMIT"] = project.shas[-1]
    lines = server.clone().lines
    phases = [line["phase"] for line in lines]
    assert phases[0] == "connecting"
    assert phases[-1] == "done"
    received = [line for line in lines if line["phase"] == "receiving"][-1]
    assert received["percent"] == 100
    assert received["objects"] == received["total"] > 50
    assert all(isinstance(line["message"], str) for line in lines)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "Receiving objects:  45% (450/1000), 12.00 MiB | 3.00 MiB/s",
            ("receiving", 45, 450, 1000, 12582912),
        ),
        ("remote: Counting objects: 100% (5/5), done.", ("counting", 100, 5, 5, None)),
        ("Resolving deltas:   7% (1/14)", ("resolving", 7, 1, 14, None)),
        ("Updating files: 100% (3/3), done.", ("files", 100, 3, 3, None)),
        ("Receiving objects: 50% (1/2), 512 bytes | 1 KiB/s", ("receiving", 50, 1, 2, 512)),
        ("remote: Enumerating objects: 5, done.", None),
        ("fatal: repository not found", None),
        ("Cooking objects:  45% (450/1000)", None),
    ],
)
def test_reading_progress(line: str, expected: tuple[Any, ...] | None) -> None:
    found = clone_git.read_progress(line)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        keys = ("phase", "percent", "objects", "total", "bytes")
        assert tuple(found.get(key) for key in keys) == expected


FAILURES = [
    ([401, "text/plain", "Sign in."], 12, "refused", "did not let you read"),
    ([403, "text/plain", "Your sign-in has expired."], 12, "refused", "Your sign-in has expired."),
    ([404, "text/plain", "No such project."], 13, "not_found", "none that you may see"),
    ([503, "text/plain", "The forge is away."], 11, "network", "The forge is away."),
    ([302, "text/plain", "x"], 16, "git_failed", "Git could not make the clone"),
]


@pytest.mark.parametrize(("answer", "code", "kind", "says"), FAILURES)
def test_a_failure_has_a_code_and_a_sentence(
    server: Server,
    small_forge: SmallForgeProcess,
    answer: list[object],
    code: int,
    kind: str,
    says: str,
) -> None:
    small_forge.save(answer=answer)
    ended = server.clone()
    assert (ended.code, ended.last["error"]) == (code, kind), ended.errors
    assert ended.last["phase"] == "failed"
    assert says in ended.last["message"]
    assert list(server.work.iterdir()) == []


def test_a_missing_commit(server: Server, small_forge: SmallForgeProcess, project: Any) -> None:
    server.variables["NOTEBOOKS_COMMIT"] = "d" * 40
    ended = server.clone()
    assert (ended.code, ended.last["error"]) == (14, "commit_missing"), ended.errors
    assert "d" * 40 in ended.last["message"]
    assert list(server.work.iterdir()) == []
    empty = f"{project.path}-empty"
    small_forge.repository(empty)
    small_forge.allow(TOKEN, empty)
    server.variables["NOTEBOOKS_PROJECT"] = empty
    assert server.clone().last["error"] == "commit_missing"


def test_a_forge_that_does_not_listen(server: Server, tmp_path: Path) -> None:
    server.variables["NOTEBOOKS_GATEWAY_URL"] = "http://127.0.0.1:9/git/"
    ended = server.clone()
    assert (ended.code, ended.last["error"]) == (11, "network"), ended.errors


def test_a_forge_that_breaks_off(
    server: Server, small_forge: SmallForgeProcess, project: Any
) -> None:
    (project.seed / "big").write_bytes(os.urandom(1_000_000))
    server.variables["NOTEBOOKS_COMMIT"] = project.commit()
    small_forge.save(cut=200_000)
    ended = server.clone()
    assert (ended.code, ended.last["error"]) == (11, "network"), ended.errors
    assert list(server.work.iterdir()) == []


def test_a_full_disk(server: Server, project: Any, tmp_path: Path) -> None:
    (project.seed / "big").write_bytes(os.urandom(8_000_000))
    server.variables["NOTEBOOKS_COMMIT"] = project.commit()
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)])
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        server.variables["NOTEBOOKS_WORK_DIR"] = str(small / "work")
        ended = server.clone()
        assert (ended.code, ended.last["error"]) == (15, "no_space"), ended.errors
        assert list((small / "work").iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NOTEBOOKS_COMMIT", "main"),
        ("NOTEBOOKS_COMMIT", "A" * 40),
        ("NOTEBOOKS_BRANCH", ""),
        ("NOTEBOOKS_BRANCH", "--upload-pack=id"),
        ("NOTEBOOKS_PROJECT", "alone"),
        ("NOTEBOOKS_PROJECT", "group/../x"),
        ("NOTEBOOKS_PROJECT", "group/.git"),
        ("NOTEBOOKS_PROJECT_ID", "x"),
        ("NOTEBOOKS_FORGE_URL", "ssh://git@forge"),
        ("NOTEBOOKS_FORGE_URL", "http://forge\n[alias]"),
        ("NOTEBOOKS_GATEWAY_URL", "ext::sh -c id"),
        ("NOTEBOOKS_WORK_DIR", "relative"),
    ],
)
def test_a_wrong_variable_is_named(server: Server, name: str, value: str) -> None:
    server.variables[name] = value
    ended = server.clone()
    assert (ended.code, ended.last["error"]) == (2, "environment")
    assert name in ended.last["message"]


@pytest.mark.parametrize("branch", ["a..b", "a b", "a~1", "@{-1}", "HEAD^"])
def test_a_branch_that_git_does_not_allow(server: Server, branch: str) -> None:
    server.variables["NOTEBOOKS_BRANCH"] = branch
    ended = server.clone()
    assert ended.code == 16
    assert list(server.work.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_clone_is_never_taken_for_a_whole_one(
    server: Server, small_forge: SmallForgeProcess, number: signal.Signals
) -> None:
    small_forge.save(stall=True)
    process = subprocess.Popen(
        server.command("clone.py"),
        env=server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: server.work.exists() and any(server.work.glob(".*/.git/HEAD")))
    if number == signal.SIGTERM:
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 143
        assert b'"error": "cancelled"' in output.splitlines()[-1]
        assert list(server.work.iterdir()) == []
    else:
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        assert not server.folder.exists()
    small_forge.save(stall=None)
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert [path.name for path in server.work.iterdir()] == [server.folder.name]


def test_nothing_of_the_repository_is_run(server: Server, project: Any, tmp_path: Path) -> None:
    witness = tmp_path / "was-run"
    (project.seed / ".gitattributes").write_text("* filter=evil\n")
    (project.seed / ".gitmodules").write_text(
        f'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c "touch {witness}"\n'
    )
    (project.seed / ".gitconfig").write_text(f'[filter "evil"]\n\tsmudge = touch {witness}\n')
    hooks = project.seed / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {witness}\n")
    (hooks / "post-checkout").chmod(0o755)
    git("update-index", "--add", "--cacheinfo", f"160000,{project.shas[0]},x", cwd=project.seed)
    server.variables["NOTEBOOKS_COMMIT"] = project.commit()
    # A configuration of the person's own that points hooks into the repository.
    server.directory.mkdir()
    (server.directory / "gitconfig").write_text("[core]\n\thooksPath = hooks\n")
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert not witness.exists()
    assert server.git("status", "--porcelain") == ""


def test_no_token_is_in_any_file_or_output(server: Server) -> None:
    server.variables |= {"GIT_TRACE_CURL": "1", "GIT_TRACE_REDACT": "0"}
    ended = server.clone()
    assert TOKEN not in ended.errors + str(ended.lines)
    for path in server.directory.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_the_exit_codes_in_the_docstring_are_the_programs_own() -> None:
    text = (PROGRAMS / "clone.py").read_text().split('"""')[1]
    for kind, (code, _) in clone_git.SENTENCES.items():
        assert f"\n{code:<4} ``{kind}``: " in text
