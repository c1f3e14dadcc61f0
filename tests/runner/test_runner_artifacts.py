"""What a job leaves and what it is given: with real jobs, and hostile archives as a table."""

from __future__ import annotations

import gzip
import io
import os
import stat
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from notebooks_service.runner import artifacts
from notebooks_service.runner.artifacts import ArtifactsRefused, Wanted
from runner_fixtures import StartRunner, Workspace


def wanted(*paths: str, exclude: tuple[str, ...] = (), untracked: bool = False) -> Wanted:
    return Wanted("artifacts", paths, exclude, untracked, "on_success", None)


def names(file: Path) -> set[str]:
    with zipfile.ZipFile(file) as archive:
        return set(archive.namelist())


@pytest.mark.parametrize(
    ("glob", "path", "meant"),
    [
        ("out", "out/a/b", True),
        ("out/", "out/a", True),
        ("./out/", "out/a", True),
        ("out", "outer/a", False),
        ("*.txt", "a.txt", True),
        ("*.txt", "a/b.txt", False),
        ("**/*.txt", "a/b.txt", True),
        ("**/*.txt", "b.txt", True),
        ("a/**", "a/b/c", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("", "a", False),
        ("..", "a", False),
        ("../x", "x", False),
        (".", "a/b", True),
        ("(", "(", True),
        ("a.c", "abc", False),
    ],
)
def test_patterns(glob: str, path: str, meant: bool) -> None:
    """https://docs.gitlab.com/ci/yaml/#artifactspaths"""
    assert artifacts.pattern(glob)(path) is meant


@given(st.text(max_size=40), st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_pattern_gives_an_answer(glob: str, path: str) -> None:
    assert artifacts.pattern(glob)(path) in (True, False)


def test_a_wicked_pattern_is_quick() -> None:
    began = time.process_time()
    assert not artifacts.pattern("**/a" * 60 + "b")("a/" * 2000)
    assert time.process_time() - began < 5


def test_packing_follows_no_link_and_reads_no_pipe(tmp_path: Path) -> None:
    project = tmp_path / "p"
    (project / "out").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (project / "out" / "good").write_text("good")
    (project / "out" / "link").symlink_to(tmp_path / "secret")
    (project / "dir").symlink_to(tmp_path)
    os.mkfifo(project / "out" / "pipe")
    (project / ".git").mkdir()
    (project / ".git" / "config").write_text("x")
    if os.getuid() == 0:  # of somebody else: what the job could name, but not read
        (project / "out" / "theirs").write_text("secret")
        os.chown(project / "out" / "theirs", 4242, 4242)
    file = tmp_path / "a.zip"
    artifacts.pack(project, wanted("."), (), file)
    assert names(file) == {"out/good", "out/link", "dir"}
    with zipfile.ZipFile(file) as archive:
        # The link as a link: its target's name, never its content.
        assert archive.read("out/link").decode() == str(tmp_path / "secret")
        assert stat.S_ISLNK(archive.getinfo("out/link").external_attr >> 16)
    back = tmp_path / "back"
    back.mkdir()
    with pytest.raises(ArtifactsRefused, match="leaves the project"):
        artifacts.unpack(file, back)


def test_exclude_untracked_and_nothing(tmp_path: Path) -> None:
    project = tmp_path / "p"
    project.mkdir()
    for name in ("a.txt", "b.log", "tracked"):
        (project / name).write_text(name)
    file = tmp_path / "a.zip"
    artifacts.pack(project, wanted("*", exclude=("*.log",)), (), file)
    assert names(file) == {"a.txt", "tracked"}
    artifacts.pack(project, wanted(untracked=True), {"tracked"}, file)
    assert names(file) == {"a.txt", "b.log"}
    nothing = tmp_path / "n.zip"
    notes = artifacts.pack(project, wanted("none"), (), nothing)
    assert notes == ["WARNING: none: no matching files", "ERROR: No files to upload"]
    assert not nothing.exists()


def archive(path: Path, *entries: tuple[str, bytes, int]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            made.writestr(info, content)
    return path


LINK = stat.S_IFLNK | 0o777
HOSTILE = {
    "up": [("../evil", b"x", 0o644)],
    "deep up": [("a/../../evil", b"x", 0o644)],
    "absolute": [("/evil", b"x", 0o644)],
    "git": [(".git/hooks/x", b"x", 0o755)],
    "empty": [("a//b", b"x", 0o644)],
    "link out": [("l", b"..", LINK)],
    "link away": [("l", b"/etc", LINK)],
    "through its own link": [("l", b"inside", LINK), ("l/x", b"x", 0o644)],
    "through the project's link": [("there/evil", b"x", 0o644)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_stay_inside(tmp_path: Path, kind: str) -> None:
    project, outside = tmp_path / "p", tmp_path / "outside"
    outside.mkdir()
    (project / "inside").mkdir(parents=True)
    (project / "there").symlink_to(outside)
    with pytest.raises(ArtifactsRefused):
        artifacts.unpack(archive(tmp_path / "a.zip", *HOSTILE[kind]), project)
    assert list(outside.iterdir()) == []
    assert {one.name for one in tmp_path.iterdir()} == {"p", "outside", "a.zip"}


def test_an_archive_has_limits_whatever_it_says_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits as they are would take gigabytes here."""
    monkeypatch.setattr(artifacts, "MOST_FILES", 3)
    monkeypatch.setattr(artifacts, "MOST_BYTES", 4096)
    small, many, large = tmp_path / "small", tmp_path / "many", tmp_path / "large"
    for project, files, size in ((small, 3, 1000), (many, 4, 10), (large, 2, 3000)):
        project.mkdir()
        for number in range(files):
            (project / f"f{number}").write_bytes(b"x" * size)
    artifacts.pack(small, wanted("."), (), tmp_path / "a.zip")
    for project in (many, large):
        with pytest.raises(ArtifactsRefused, match="more than a runner keeps"):
            artifacts.pack(project, wanted("."), (), tmp_path / "b.zip")
        files = [(one.name, one.read_bytes(), 0o644) for one in project.iterdir()]
        made = archive(tmp_path / f"{project.name}.zip", *files)
        back = tmp_path / f"{project.name}-back"
        back.mkdir()
        with pytest.raises(ArtifactsRefused, match=r"too many files|too large when unpacked"):
            artifacts.unpack(made, back)


def test_a_file_never_replaces_what_a_link_names(tmp_path: Path) -> None:
    project = tmp_path / "p"
    project.mkdir()
    (tmp_path / "outside").write_text("mine")
    (project / "x").symlink_to(tmp_path / "outside")
    good = archive(tmp_path / "a.zip", ("x", b"new", 0o4755), ("d/y", b"y", 0o644))
    assert artifacts.unpack(good, project) == 2
    assert (tmp_path / "outside").read_text() == "mine"
    assert (project / "x").read_text() == "new" and not (project / "x").is_symlink()
    assert (project / "x").stat().st_mode & 0o7777 == 0o755


def test_a_broken_archive(tmp_path: Path) -> None:
    project = tmp_path / "p"
    project.mkdir()
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(ArtifactsRefused, match="cannot be read"):
        artifacts.unpack(tmp_path / "a.zip", project)


CI = """
stages: [make, use]
make:
  stage: make
  variables: {WHERE: out}
  script: [mkdir -p out/deep, echo one > out/a.txt, echo two > out/deep/b.txt, echo x > out/c.log]
  artifacts: {paths: [$WHERE/], exclude: ["**/*.log"], expire_in: 2 days, name: built-$CI_JOB_NAME}
loose:
  stage: make
  script: [echo three > loose.txt]
  artifacts: {untracked: true}
broken:
  stage: make
  script: [echo four > why.txt, exit 3]
  allow_failure: true
  artifacts: {paths: [why.txt], when: on_failure}
told:
  stage: make
  script: ['printf "COLOUR = red\\nFULL=\\$COLOUR-ish\\nWHERE=reported\\n" > build.env', echo '<x/>' > r1.xml, echo '<y/>' > r2.xml, exit 4]
  allow_failure: true
  artifacts: {reports: {dotenv: [build.env], junit: ["r*.xml"], codequality: missing.json}}
heard: {stage: use, variables: {WHERE: own, COLOUR: own}, script: ['test "$COLOUR $FULL $WHERE" = "red red-ish reported"', test ! -e build.env]}
deaf: {stage: use, needs: [make], script: ['test -z "$COLOUR"', 'test -z "$FULL"']}
all: {stage: use, script: [cat out/a.txt out/deep/b.txt loose.txt why.txt, test ! -e out/c.log]}
some: {stage: use, dependencies: [loose], script: [cat loose.txt, test ! -e out]}
none: {stage: use, dependencies: [], script: [test ! -e out, test ! -e loose.txt]}
needed: {stage: use, needs: [make, {job: loose, artifacts: false}], script: [test -e out, test ! -e loose.txt]}
"""


def test_jobs_hand_on_what_they_leave(workspace: Workspace, start_runner: StartRunner) -> None:
    start_runner(workspace.forge)
    sha = workspace.push(CI)
    for name in ("make", "loose", "all", "some", "none", "needed", "heard", "deaf"):
        job = workspace.ended(sha, name)
        assert job.status == "success", (name, job.attributes, workspace.trace(job.id))
    make = workspace.job(sha, "make")
    assert make.artifacts_file["filename"] == "built-make.zip"
    assert make.artifacts_expire_at
    with zipfile.ZipFile(io.BytesIO(make.artifacts())) as found:
        assert set(found.namelist()) == {"out/a.txt", "out/deep/b.txt"}
    assert make.artifact("out/deep/b.txt") == b"two\n"
    # Reports come of jobs that failed, too; https://docs.gitlab.com/ci/yaml/artifacts_reports/
    told = workspace.job(sha, "told")
    assert "missing.json: no matching files" in workspace.trace(told.id)
    kept = {one["file_type"]: one for one in told.attributes["artifacts"]}
    assert told.status == "failed" and set(kept) - {"trace"} == {"dotenv", "junit"}
    assert (kept["junit"]["file_format"], kept["junit"]["filename"]) == ("gzip", "junit.xml.gz")
    places = workspace.forge.data / "forge" / "artifacts" / str(workspace.id) / str(told.id)
    assert gzip.decompress((places / "junit").read_bytes()) == b"<x/>\n<y/>\n"
    broken = workspace.job(sha, "broken")
    assert broken.status == "failed" and broken.artifact("why.txt") == b"four\n"
    latest = workspace.api.artifacts.download(ref_name="main", job="make")
    assert latest == make.artifacts()
