"""Large files, large histories, large trees: what a clone fetches, and what it refuses before it does."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from singleuser_server import Server

from notebooks_service.singleuser import clone_size, lfs_objects
from small_disk import SmallDisk
from small_forge import SmallForgeProcess, git

HAS_GIT_LFS = shutil.which("git-lfs") is not None


def pointer(content: bytes) -> str:
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"


def keep(forge: SmallForgeProcess, content: bytes) -> None:
    store = forge.directory / "lfs"
    store.mkdir(exist_ok=True)
    (store / hashlib.sha256(content).hexdigest()).write_bytes(content)


@pytest.fixture
def big(small_forge: SmallForgeProcess, project: Any, server: Server) -> bytes:
    """A commit with a large file in LFS, twice; its content."""
    content = os.urandom(300_000)
    keep(small_forge, content)
    small_forge.save(lfs_offer=None, lfs_answer=None)
    (project.seed / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (project.seed / "deep").mkdir()
    for name in ("big.bin", "deep/größe 1.bin"):
        (project.seed / name).write_text(pointer(content))
    (project.seed / "deep/größe 1.bin").chmod(0o755)
    server.variables["NOTEBOOKS_COMMIT"] = project.commit()
    return content


@pytest.fixture(scope="session")
def path_without_git_lfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to all programs on the path but git-lfs."""
    programs = tmp_path_factory.mktemp("programs")
    for directory in os.environ["PATH"].split(os.pathsep):
        for file in Path(directory).glob("*") if Path(directory).is_dir() else []:
            link = programs / file.name
            if file.name != "git-lfs" and not link.is_symlink():
                link.symlink_to(file)
    return programs


@pytest.fixture(params=[True, False] if HAS_GIT_LFS else [False], ids=lambda p: f"git-lfs-{p}")
def with_git_lfs(
    request: pytest.FixtureRequest, server: Server, path_without_git_lfs: Path
) -> bool:
    """Whether the image has git-lfs."""
    if not request.param:
        server.variables["PATH"] = str(path_without_git_lfs)
    return bool(request.param)


def test_large_files_are_there_and_status_is_clean(
    server: Server, big: bytes, with_git_lfs: bool
) -> None:
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert (ended.last["large_files"], ended.last["pointers"]) == (2, 0)
    assert (server.folder / "big.bin").read_bytes() == big
    second = server.folder / "deep/größe 1.bin"
    assert second.read_bytes() == big and second.stat().st_mode & stat.S_IXUSR
    assert any(line["phase"] == "large files" for line in ended.lines)
    assert server.git("status", "--porcelain") == ""
    assert any("no git-lfs" in note for note in ended.last["notes"]) is not with_git_lfs
    # Touched and written anew, the same file is still no change.
    (server.folder / "big.bin").write_bytes(big)
    assert server.git("status", "--porcelain") == ""
    assert server.unsaved()["clean"] is True


def test_pointers_first_and_pull_later(server: Server, big: bytes, with_git_lfs: bool) -> None:
    server.variables["NOTEBOOKS_LFS_AUTO_FETCH"] = "0"
    ended = server.clone()
    assert (ended.last["large_files"], ended.last["pointers"]) == (0, 2)
    assert (server.folder / "big.bin").read_text() == pointer(big)
    assert server.git("status", "--porcelain") == ""
    server.git("lfs", "pull")
    assert (server.folder / "big.bin").read_bytes() == big
    assert server.git("status", "--porcelain") == ""


def test_a_new_large_file_is_pushed(
    server: Server, big: bytes, with_git_lfs: bool, small_forge: SmallForgeProcess, project: Any
) -> None:
    server.clone()
    fresh = os.urandom(50_000)
    (server.folder / "new.bin").write_bytes(fresh)
    server.git("add", "new.bin")
    server.git("commit", "-q", "-m", "New")
    server.git("push", "-q")
    assert git("show", "main:new.bin", cwd=project.bare) + "\n" == pointer(fresh)
    kept = small_forge.directory / "lfs" / hashlib.sha256(fresh).hexdigest()
    assert kept.read_bytes() == fresh


@pytest.mark.parametrize(
    ("rules", "code", "says"),
    [
        ({"lfs_answer": [200, "other bytes"]}, 0, "not what its pointer says"),
        ({"lfs_answer": [404, "gone"]}, 0, "the forge does not have it"),
        ({"lfs_answer": [403, "no"]}, 12, "did not let you read"),
        ({"lfs_answer": [500, "no"]}, 11, "could not be reached or broke off"),
        ({"lfs_offer": {"href": "http://127.0.0.1:9/elsewhere"}}, 12, "address elsewhere"),
    ],
)
def test_what_can_go_wrong_with_large_files(
    server: Server,
    big: bytes,
    small_forge: SmallForgeProcess,
    rules: dict[str, Any],
    code: int,
    says: str,
) -> None:
    small_forge.save(**rules)
    ended = server.clone()
    assert ended.code == code, ended.errors
    assert says in " ".join([ended.last["message"], *ended.last.get("notes", [])])
    if code:
        assert list(server.work.iterdir()) == []
    else:
        assert (server.folder / "big.bin").read_text() == pointer(big)
        assert server.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (pointer(b"x").encode(), True),
        (pointer(b"x").encode().rstrip(b"\n"), True),
        (pointer(b"x").replace("oid", "ext-0-foo sha256:1\noid").encode(), True),
        (pointer(b"x").encode() + b"more\n", False),
        (pointer(b"x").replace("sha256", "md5").encode(), False),
        (pointer(b"x").replace("size 1", "size -1").encode(), False),
        (pointer(b"x").upper().encode(), False),
        (b"", False),
        (b"\0" * 100, False),
        (pointer(b"x").encode() + b" " * 2000, False),
    ],
)
def test_what_is_a_pointer(content: bytes, found: bool) -> None:
    assert (lfs_objects.read_pointer(content) is not None) is found


# -- large histories ---------------------------------------------------------------------------------


def test_a_partial_clone_has_all_of_the_history_and_fetches_what_is_needed(
    server: Server, project: Any
) -> None:
    git("config", "uploadpack.allowFilter", "true", cwd=project.bare)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=project.bare)
    ended = server.clone()
    assert ended.code == 0, ended.errors
    assert ended.last["partial"] is True
    old = f"{project.shas[0]}:data.txt"
    gateway = server.variables["NOTEBOOKS_GATEWAY_URL"]
    server.variables["NOTEBOOKS_GATEWAY_URL"] = "http://127.0.0.1:9/"
    server.run("gitconfig.py")
    assert len(server.git("log", "--format=%H").splitlines()) == 4
    assert server.git("status", "--porcelain") == ""
    assert server.try_git("show", old).returncode != 0
    server.variables["NOTEBOOKS_GATEWAY_URL"] = gateway
    server.run("gitconfig.py")
    assert server.git("show", old) == "0"
    assert "Ada" in server.git("blame", "data.txt")
    server.git("checkout", "-q", project.shas[0])
    assert (server.folder / "data.txt").read_text() == "0\n"
    server.git("checkout", "-q", "main")
    server.git("commit", "-q", "--allow-empty", "-m", "Mine")
    server.git("push", "-q")


@pytest.mark.parametrize(
    ("size", "partial"), [(None, True), (10**6, True), (10**6 - 1, False), (0, False)]
)
def test_large_repositories_and_those_of_unknown_size_are_cloned_in_part(
    server: Server, project: Any, size: int | None, partial: bool
) -> None:
    git("config", "uploadpack.allowFilter", "true", cwd=project.bare)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=project.bare)
    server.variables["NOTEBOOKS_PARTIAL_CLONE_FROM"] = str(10**6)
    server.variables["NOTEBOOKS_REPOSITORY_BYTES"] = "" if size is None else str(size)
    assert server.clone().last["partial"] is partial


# -- too large ---------------------------------------------------------------------------------------


def bomb(project: Any, levels: int, width: int, blob: bytes = b"x") -> str:
    """A commit whose tree holds ``width ** levels`` files in ``levels`` + 2 objects."""
    kept = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"], cwd=project.bare, input=blob, capture_output=True
    )
    below, kind = kept.stdout.decode().strip(), "100644 blob"
    for _ in range(levels):
        lines = "".join(f"{kind} {below}\tn{number}\n" for number in range(width))
        made = subprocess.run(
            ["git", "mktree"], cwd=project.bare, input=lines.encode(), capture_output=True
        )
        below, kind = made.stdout.decode().strip(), "040000 tree"
    return commit_tree(project, below)


def commit_tree(project: Any, tree: str) -> str:
    sha = git("commit-tree", tree, "-m", "Made", cwd=project.bare)
    git("update-ref", "refs/heads/made", sha, cwd=project.bare)
    return sha


@pytest.mark.parametrize(
    ("levels", "width", "says"),
    [
        (12, 30, "has more than 1,000,000 files"),
        (7, 10, "has 11,111,110 files"),
        (2100, 1, "2000 directories in one another"),
    ],
)
@pytest.mark.parametrize("partial", [True, False])
def test_a_bomb_of_trees_is_refused_before_it_is_written(
    server: Server, project: Any, levels: int, width: int, says: str, partial: bool
) -> None:
    git("config", "uploadpack.allowFilter", str(partial).lower(), cwd=project.bare)
    server.variables["NOTEBOOKS_COMMIT"] = bomb(project, levels, width)
    ended = server.clone()
    assert ended.last["error"] in ("too_many_files", "unsafe_path"), ended.errors
    assert says in ended.last["message"]
    assert list(server.work.iterdir()) == []


def test_a_bomb_of_one_blob_is_refused_with_its_size_and_what_is_free(
    server: Server, project: Any
) -> None:
    # 3 MB in 1,000 places: 3 GB out of 3 kB, with a margin that leaves less than that.
    free = shutil.disk_usage(server.directory.parent).free
    server.variables["NOTEBOOKS_DISK_MARGIN"] = str(free - 2_000_000_000)
    server.variables["NOTEBOOKS_COMMIT"] = bomb(project, 3, 10, b"\0" * 3_000_000)
    ended = server.clone()
    assert ended.last["error"] == "no_room", ended.errors
    assert "take 3.0 GB, and there are" in ended.last["message"]
    assert list(server.work.iterdir()) == []


@pytest.mark.parametrize("where", ["repository", "large files"])
def test_what_does_not_fit_is_said_before_it_comes(
    server: Server, big: bytes, small_forge: SmallForgeProcess, where: str
) -> None:
    free = shutil.disk_usage(server.directory.parent).free
    if where == "repository":
        server.variables["NOTEBOOKS_REPOSITORY_BYTES"] = str(free * 2)
        server.variables["NOTEBOOKS_PARTIAL_CLONE_FROM"] = str(free * 3)
    else:
        huge = pointer(big).replace("size 300000", f"size {free}")
        (server.directory.parent / "seed" / "big.bin").write_text(huge)
        seed = server.directory.parent / "seed"
        git("commit", "-qam", "Huge", cwd=seed)
        bare = small_forge.directory / f"{server.variables['NOTEBOOKS_PROJECT']}.git"
        git("push", "-q", str(bare), "HEAD:refs/heads/huge", cwd=seed)
        server.variables["NOTEBOOKS_COMMIT"] = git("rev-parse", "HEAD", cwd=seed)
    asked = len(small_forge.requests())
    ended = server.clone()
    assert ended.last["error"] == "no_room", ended.errors
    assert "free on this disk" in ended.last["message"]
    assert not any("lfs" in each["path"] for each in small_forge.requests()[asked:])
    if where == "repository":
        assert len(small_forge.requests()) == asked
    assert list(server.work.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (3 * 10**9, "3.0 GB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert clone_size.human(size) == text


# -- a disk that fills on the way ------------------------------------------------------------------


@pytest.fixture
def full_on_the_way(server: Server, small_disk: SmallDisk) -> Callable[[str], None]:
    """``full_on_the_way(size)``: a clone to a disk of that size fails with one sentence, leaves nothing,
    and succeeds once there is room."""

    def check(size: str) -> None:
        disk = small_disk(server.directory / "disk", size)
        server.variables["NOTEBOOKS_WORK_DIR"] = str(disk / "work")
        ended = server.clone()
        assert (ended.code, ended.last["error"]) == (15, "no_space"), ended.errors
        assert ended.last["message"].startswith("The disk is full. Free some space")
        assert list((disk / "work").iterdir()) == []
        room = ["mount", "-o", "remount,size=64m,nr_inodes=10000", str(disk)]
        subprocess.run(room, check=True)
        again = server.clone()
        assert again.code == 0, again.errors
        folder = disk / "work" / server.folder.name
        command = ["git", "-C", str(folder), "status", "--porcelain"]
        status = subprocess.run(command, env=server.environment, capture_output=True, text=True)
        assert (status.returncode, status.stdout) == (0, ""), status.stderr

    return check


def test_a_disk_that_fills_while_files_are_written(
    server: Server, project: Any, full_on_the_way: Callable[[str], None]
) -> None:
    """Weighed, the commit has room: its attributes make it twice as large."""
    (project.seed / ".gitattributes").write_text("*.txt text eol=crlf\n")
    (project.seed / "long.txt").write_text("\n" * 3_000_000)
    server.variables["NOTEBOOKS_COMMIT"] = project.commit()
    full_on_the_way("5m")


def test_a_disk_that_fills_while_large_files_come(
    server: Server,
    project: Any,
    small_forge: SmallForgeProcess,
    full_on_the_way: Callable[[str], None],
) -> None:
    """Each lies in two directories of its own, for which there is no room."""
    small_forge.save(lfs_offer=None, lfs_answer=None)
    (project.seed / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    for number in range(40):
        content = b"large file %d" % number
        keep(small_forge, content)
        (project.seed / f"{number}.bin").write_text(pointer(content))
    server.variables["NOTEBOOKS_COMMIT"] = project.commit()
    full_on_the_way("16m,nr_inodes=110")
