"""The same questions, asked of the embedded forge as a process: two things we wrote must agree."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from forge_fixtures import ForgeProcess, make_repository, run_git
from notebooks_service.domain import AccessLevel, Project
from notebooks_service.errors import ForgeUnavailable, NotFound, SignInExpired
from notebooks_service.gitlab.files import ForgeFiles
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.fingerprint import BuildOptions, environment_of
from notebooks_service.images.tree import CheckoutTree


@dataclass(frozen=True)
class Place:
    """A private project in a nested group, with an owner, a reporter by inheritance, a stranger."""

    process: ForgeProcess
    project: Project
    shas: list[str]
    owner: Forge
    reporter: Forge
    stranger: Forge


@pytest.fixture(scope="module")
def place(forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("gitlab-embedded")
    shas = make_repository(
        root / "thing",
        {"README.md": "# Größe\n", "notes/a b.ipynb": "{}"},
        {"requirements.txt": "six\n"},
        {"-odd.txt": "x", "deep/er/file": "y"},
    )
    run_git("tag", "v1", shas[0], cwd=root / "thing")
    run_git("tag", "-a", "-m", "two", "v2", shas[1], cwd=root / "thing")
    run_git("branch", "feature/größe", shas[1], cwd=root / "thing")
    run_git("branch", "v1", shas[1], cwd=root / "thing")
    owner, reporter, stranger = forge.user(), forge.user(), forge.user()
    path = f"{owner}-group/sub/thing"
    forge.project(root / "thing", path, owner)
    forge.administration.add_member(f"{owner}-group", reporter, "reporter")
    asked = {name: Forge(forge.url, forge.token(name)) for name in (owner, reporter, stranger)}
    return Place(
        forge, asked[owner].project(path), shas, asked[owner], asked[reporter], asked[stranger]
    )


def test_the_project(place: Place) -> None:
    assert place.project.default_branch == "main"
    assert place.project.visibility == "private"
    assert place.owner.project(place.project.id) == place.project
    assert place.reporter.project(place.project.path).id == place.project.id
    for asked in (place.project.path, place.project.id, "no/such", 999999):
        with pytest.raises(NotFound) as caught:
            place.stranger.project(asked)
        assert caught.value.message == NotFound.message


def test_levels(place: Place) -> None:
    assert place.owner.access(place.project) is AccessLevel.OWNER
    assert place.reporter.access(place.project) is AccessLevel.REPORTER
    with pytest.raises(NotFound):
        place.stranger.access(place.project)


def test_who_may_only_read_is_no_member(place: Place, tmp_path: Path) -> None:
    forge = place.process
    make_repository(tmp_path / "public")
    owner = forge.user()
    forge.project(tmp_path / "public", f"{owner}/public", owner, visibility="public")
    project = place.stranger.project(f"{owner}/public")
    assert place.stranger.access(project) is AccessLevel.NONE
    assert place.stranger.commit(project, "main").title


def test_refs(place: Place) -> None:
    first, second, third = place.shas
    ask = place.reporter
    assert ask.commit(place.project, "main").sha == third
    assert ask.commit(place.project, "HEAD").sha == third
    assert ask.commit(place.project, "v1").sha == second, "the branch, not the tag"
    assert ask.commit(place.project, "refs/tags/v1").sha == first
    assert ask.commit(place.project, "v2").sha == second, "the commit of an annotated tag"
    assert ask.commit(place.project, "feature/größe").sha == second
    assert ask.commit(place.project, first[:8]).sha == first
    assert ask.commit(place.project, first.upper()).parents == ()
    assert ask.commit(place.project, second).parents == (first,)
    for name in ("nothing", "-x", "0" * 40, "--help", "main..v1", "refs/heads/nothing"):
        with pytest.raises(NotFound):
            ask.commit(place.project, name)
    with pytest.raises(NotFound):
        place.stranger.commit(place.project, first)
    branches = {ref.name: ref for ref in ask.branches(place.project)}
    assert set(branches) == {"main", "v1", "feature/größe"}
    assert branches["main"].default and branches["main"].sha == third
    assert place.owner.branch(place.project, "feature/größe").can_push
    assert not ask.branch(place.project, "feature/größe").can_push
    assert {ref.name: ref.sha for ref in ask.tags(place.project)} == {"v1": first, "v2": second}
    assert [ref.name for ref in ask.branches(place.project, "feat")] == ["feature/größe"]
    kinds = {(ref.kind, ref.name) for ref in ask.commit_refs(place.project, second)}
    assert {("branch", "main"), ("branch", "v1"), ("tag", "v2")} <= kinds


def test_pages_of_commits(place: Place) -> None:
    page = place.reporter.commits(place.project, "main", per_page=2)
    assert [one.sha for one in page.items] == place.shas[:0:-1]
    assert page.next_page == 2
    last = place.reporter.commits(place.project, "main", page=2, per_page=2)
    assert [one.sha for one in last.items] == place.shas[:1]
    assert last.next_page is None
    found = place.reporter.commits(place.project, "main", search="Commit 2")
    assert [one.sha for one in found.items] == [place.shas[1]]
    by_sha = place.reporter.commits(place.project, "main", search=place.shas[0][:9])
    assert place.shas[0] in [one.sha for one in by_sha.items]


def test_projects(place: Place) -> None:
    mine = place.reporter.projects(membership=True)
    assert [one.path for one in mine.items] == [place.project.path]
    assert place.project.path not in [one.path for one in place.stranger.projects().items]
    assert [one.id for one in place.owner.projects("thing", membership=True).items] == [
        place.project.id
    ]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("README.md", "file"), ("notes/a b.ipynb", "file"), ("notes", "directory"), ("deep/er", "directory"),
        ("-odd.txt", "file"), ("gone", None), ("../README.md", None), ("", "directory"),
    ],
)  # fmt: skip
def test_paths(place: Place, path: str, kind: str | None) -> None:
    assert place.reporter.path_kind(place.project, place.shas[2], path) == kind


def test_links_and_submodules_in_a_tree(place: Place, tmp_path: Path) -> None:
    work = tmp_path / "linked"
    shas = make_repository(work, {"notes/a.txt": "a", ".gitmodules": "x" * 300_000})
    for name, target in LINKS.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).symlink_to(target)
    run_git("add", ".", cwd=work)
    run_git("update-index", "--add", "--cacheinfo", f"160000,{shas[0]},deep/sub", cwd=work)
    run_git("commit", "-q", "-m", "Links", cwd=work)
    owner = place.owner.user().username
    path = f"{owner}-group/sub/linked"
    place.process.project(work, path, owner)
    project = place.reporter.project(path)
    sha = place.reporter.commit(project, "main").sha

    def kind(path: str) -> str | None:
        return place.reporter.path_kind(project, sha, path)

    kinds = {name: kind(name) for name in LINKS}
    assert kinds == {
        "inside": "file",
        "to-inside": "file",
        "directory": "directory",
        "here": "directory",
        "deep/up": "file",
        "deep/out": "outside",
        "absolute": "outside",
        "far": "outside",
        "dangling": None,
        "loop": "outside",
    }
    assert kind("absolute/passwd") == "outside"
    assert kind("notes/a.txt/x") == "outside"
    assert place.reporter.gitlink(project, sha, "deep/sub") == shas[0]
    assert place.reporter.gitlink(project, sha, "notes") is None
    assert place.reporter.gitlink(project, sha, "deep/none") is None
    assert len(place.reporter.file(project, sha, ".gitmodules", 1000) or b"") == 1000
    assert place.reporter.file(project, sha, "nothing", 1000) is None
    assert (place.reporter.repository_bytes(project) or 0) > 0
    with pytest.raises(NotFound):
        place.stranger.repository_bytes(project)


LINKS = {
    "inside": "notes/a.txt",
    "to-inside": "inside",
    "directory": "notes",
    "here": ".",
    "deep/up": "../notes/a.txt",
    "deep/out": "../../x",
    "absolute": "/etc",
    "far": "notes/../../x",
    "dangling": "nothing",
    "loop": "loop",
}


def test_a_project_without_ci_has_no_jobs_and_no_image(place: Place) -> None:
    assert place.reporter.ci.jobs(place.project, place.shas[0], "image_build") == []
    assert place.reporter.registry.tag(place.project, place.shas[0]) is None


def test_who_it_is(place: Place) -> None:
    user = place.owner.user()
    assert user.email == f"{user.username}@example.org"


def test_a_token_that_is_none(place: Place) -> None:
    with pytest.raises(SignInExpired):
        Forge(place.process.url, "no-such-token").user()


def test_what_the_forge_does_not_do_is_no_404(place: Place) -> None:
    with pytest.raises(ForgeUnavailable) as caught:
        place.owner._transport.get("/projects/1/issues")
    assert caught.value.detail["reason"] == "HTTP 501"


def test_an_environment_is_called_the_same_by_api_and_from_a_checkout(
    place: Place, tmp_path: Path
) -> None:
    """Pages, links, modes, names that need quoting, directories as one id and others looked into."""
    forge, root = place.process, tmp_path / "thing"
    dockerfile = "FROM python:3\nCOPY *.txt link /x/\nCOPY src many /x/\n"
    files = {f"many/a b {number}/ü": str(number) for number in range(150)}
    files |= {
        "src/-odd": "1",
        "src/[x]": "2",
        "src/deep/x.pyc": "3",
        "src/deep/y": "4",
        "a.txt": "5",
    }
    shas = make_repository(
        root,
        {"requirements.txt": "-r sub/r.txt\n", "sub/r.txt": "six\n", "README.md": "1"},
        {**files, "Dockerfile": dockerfile},
        {".dockerignore": "src/deep/x.pyc\n"},
        {".dockerignore": "**/*.pyc\nmany/a b 7\n"},
    )
    (root / "link").symlink_to("src/deep")
    (root / "src" / "run").write_text("6")
    (root / "src" / "run").chmod(0o755)
    shas += make_repository(root, {"b.txt": "7"})
    forge.project(root, f"{place.owner.user().username}/named", place.owner.user().username)
    project = place.owner.project(f"{place.owner.user().username}/named")
    found = set()
    for sha in shas:
        api = environment_of(ForgeFiles(place.owner, project, sha), BuildOptions())
        assert api == environment_of(CheckoutTree(root, sha), BuildOptions())
        found.add(api.fingerprint)
    assert len(found) == len(shas)
