"""What is asked of a forge to find a commit's image, and how often: a scripted GitLab, a real namer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

import pytest

from notebooks_service.domain import Commit, Image, ImageOrigin, Project
from notebooks_service.errors import ForgeUnavailable, ImageUnavailable
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.base_digests import BaseDigests
from notebooks_service.images.container_naming import ContainerNamer
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.facts import FactReader
from notebooks_service.images.kept_names import KeptNames
from notebooks_service.images.known import ImageFacts, Wish
from notebooks_service.images.naming import LocalNamer, Names
from notebooks_service.images.pins import read_reference
from notebooks_service.images.resolve import BuildOnDemand, ImageLimits, UseImage, decide
from scripted_gitlab import Answer, Asked, ScriptedGitLab

PROJECT = Project(5, "g/p", "p", "main", "private", "")
API = "/api/v4/projects/5"
CI = "image_build:\n  script: [notebooks image build]\n"
FLAX, MOSS = "numpy\n", "pandas\n"


def sha(number: int) -> str:
    return f"{number:x}" * 40


def blob(text: str) -> str:
    return hashlib.sha1(f"blob {len(text)}\0{text}".encode()).hexdigest()


class Place:
    """A project at a scripted GitLab: commits with files, newest first, and tags in its registry."""

    def __init__(self, gitlab: ScriptedGitLab, root: Path) -> None:
        self.gitlab = gitlab
        self.files: dict[str, dict[str, str]] = {}
        self.history: list[str] = []
        self.tags: dict[str, str] = {}
        self.root = root
        self.kept = KeptNames(root / "kept.sqlite")
        self.names = Names(LocalNamer(EnvironmentStore(root / "environments")), self.kept)
        answer = gitlab.answers
        answer[f"GET {API}/repository/tree"] = self.ask(self.tree)
        answer[f"GET {API}/repository/commits"] = self.ask(self.commits)
        answer[f"GET {API}/registry/repositories"] = self.ask(lambda q: [{"id": 2, "path": "g/p"}])
        answer[f"GET {API}/registry/repositories/2/tags"] = self.ask(
            lambda q: [{"name": name} for name in self.tags]
        )
        gitlab.json("GET /api/v4/user", {"id": 1, "username": "ada"})
        self.level = 20
        self.refs = ["main"]
        answer[f"GET {API}/members/all/1"] = self.ask(lambda q: {"access_level": self.level})
        answer[f"GET {API}/pipelines"] = self.ask(lambda q: [])

    @staticmethod
    def ask(body: Any) -> Any:
        def answer(asked: Asked) -> Answer:
            found = body({key: values[-1] for key, values in parse_qs(asked.query).items()})
            headers = {"Content-Type": "application/json"}
            return (200 if found is not None else 404), headers, json.dumps(found).encode()

        return answer

    def commit(self, number: int, files: Mapping[str, str]) -> str:
        """A commit on top of those before it."""
        self.gitlab.answers[f"GET {API}/repository/commits/{sha(number)}/refs"] = self.ask(
            lambda q: [{"type": "branch", "name": name} for name in self.refs]
        )
        self.files[sha(number)] = dict(files)
        self.history.insert(0, sha(number))
        for text in files.values():
            self.gitlab.raw(f"GET {API}/repository/blobs/{blob(text)}/raw", 200, text.encode())
        return sha(number)

    def tree(self, query: dict[str, str]) -> Any:
        if query["ref"] not in self.files:
            return None
        return [
            {"name": path, "path": path, "mode": "100644", "id": blob(text), "type": "blob"}
            for path, text in self.files[query["ref"]].items()
        ]

    def commits(self, query: dict[str, str]) -> Any:
        start = self.history.index(query["ref_name"])
        return [{"id": one, "title": "t", "parent_ids": []} for one in self.history[start:][:100]]

    def tag(self, name: str, digest: str = "sha256:1") -> None:
        self.tags[name] = digest
        self.gitlab.json(
            f"GET {API}/registry/repositories/2/tags/{name}",
            {"name": name, "location": f"registry.example/g/p:{name}", "digest": digest},
        )

    def fingerprint(self, number: int) -> str:
        named = self.names.of(self.forge(), PROJECT, sha(number))
        assert named is not None
        return named.fingerprint

    def forge(self) -> Forge:
        return Forge(self.gitlab.url, "ada", timeout=5)

    def read(self, number: int, wish: Wish | None = None) -> tuple[ImageFacts, list[str]]:
        """The facts of a commit for a newcomer, and the paths that were asked for."""
        reader = FactReader("image_build", None, self.names)
        before = len(self.gitlab.asked)
        commit = Commit(sha(number), "t", "m", "a", "a@b", "")
        facts = reader.read(self.forge(), PROJECT, commit, wish or Wish())
        return facts, self.gitlab.paths()[before:]


@pytest.fixture
def place(gitlab: ScriptedGitLab, tmp_path: Path) -> Place:
    return Place(gitlab, tmp_path)


def test_an_environment_that_exists_takes_six_requests_and_no_pipeline(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX, "runtime.txt": "python-3.11", "a.py": "1"})
    place.tag(f"env-{place.fingerprint(1)}", "sha256:e")
    place.kept = KeptNames(None)
    place.names = Names(place.names.namer, place.kept)
    facts, asked = place.read(1)
    assert facts.environment is not None and facts.environment.tag is not None
    assert facts.environment.tag.digest == "sha256:e"
    assert len(asked) <= 6, asked
    assert not any("pipelines" in path for path in asked)
    again, fewer = place.read(1)
    assert again.environment == facts.environment
    assert len(fewer) == 3, fewer  # the registry, the commit's tag, the environment's
    place.commit(2, {"requirements.txt": FLAX, "runtime.txt": "python-3.11", "a.py": "2"})
    other, asked = place.read(2)
    assert other.environment is not None
    assert other.environment.tag == facts.environment.tag
    assert len(asked) <= 6, asked


LONG = "six\n" * 10_000  # more than is remembered of one commit for others
NAMED: list[tuple[dict[str, str], int]] = [
    ({"requirements.txt": FLAX}, 5),
    ({"requirements.txt": LONG}, 5),
    ({"requirements.txt": FLAX, ".gitlab-ci.yml": CI}, 6),
    ({"requirements.txt": FLAX, "apt.txt": "git", "runtime.txt": "python-3.11", "postBuild": "x",
      ".python-version": "3.11", "start": "", ".gitlab-ci.yml": CI}, 6),
    ({"pyproject.toml": "[project]\nname='x'", "uv.lock": "", ".gitlab-ci.yml": CI}, 6),
    ({"environment.yml": "dependencies: [{pip: [six]}]", ".gitlab-ci.yml": CI}, 6),
    ({"Dockerfile": "FROM x\nCOPY a /", "a": "", "requirements.txt": "", ".gitlab-ci.yml": CI}, 6),
    # What docs/images.md says: each file that has to be read beyond two is one more.
    ({"requirements.txt": "-r a.txt", "a.txt": FLAX, ".gitlab-ci.yml": CI}, 7),
    ({"Dockerfile": "FROM x\nCOPY a /", "a": "", ".dockerignore": "b", ".gitlab-ci.yml": CI}, 7),
]  # fmt: skip


@pytest.mark.parametrize(("files", "most"), NAMED)
def test_a_container_environment_that_exists_takes_four_requests_and_what_has_to_be_read(
    place: Place, files: dict[str, str], most: int
) -> None:
    digests = BaseDigests(())
    namer = ContainerNamer("image_build", digests, rebuild_after=0, base="registry.example/b:1")
    place.names = Names(namer, KeptNames(None))
    place.commit(1, files)
    place.tag(f"env-{place.fingerprint(1)}", "sha256:e")
    place.names = Names(namer, KeptNames(None))
    facts, asked = place.read(1)
    assert facts.environment is not None and facts.environment.tag is not None
    assert len(asked) == most, asked
    place.commit(2, {**files, "README.md": "2"})
    other, again = place.read(2)
    assert other.environment == facts.environment
    assert len(again) <= (5 if LONG in files.values() else 4), again
    digests.close()


def test_what_nobody_can_build_is_known_before_a_build(place: Place) -> None:
    """Read only once no image is there, and only once."""
    digests = BaseDigests(())
    namer = ContainerNamer("image_build", digests, rebuild_after=0, base="registry.example/b:1")
    place.names = Names(namer, KeptNames(None))
    place.commit(1, {"requirements.txt": FLAX, "apt.txt": "git; id"})
    for least in (1, 0):
        facts, asked = place.read(1)
        assert facts.environment is None and "no Debian package" in facts.no_environment
        assert len([path for path in asked if blob("git; id") in path]) == least
    place.tag(f"env-{place.fingerprint(1)}")
    facts, _ = place.read(1)
    assert facts.environment is not None and facts.environment.tag is not None
    digests.close()


@pytest.mark.parametrize(
    ("level", "refs", "may_build", "said"),
    [
        (40, ["main"], True, None),
        (30, ["main"], True, None),
        (20, ["main"], False, "Somebody who may push to this project can have it built by opening"),
        (10, ["main"], False, "Somebody who may push to this project can have it built by opening"),
        # Of a fork: a developer here may not have it built with the variables of this project's CI.
        (40, [], False, "No branch or tag of this project contains it"),
        (30, [], False, "can put a branch there first"),
        (20, [], False, "No branch or tag of this project contains it"),
    ],
)
def test_who_may_have_what_built(
    place: Place, level: int, refs: list[str], may_build: bool, said: str | None
) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.level, place.refs = level, refs
    facts, _ = place.read(1)
    assert facts.environment is not None and facts.environment.build is not None
    assert facts.may_build is may_build
    decision = decide(facts, ImageLimits(600, 600), 0)
    assert isinstance(decision, BuildOnDemand) is may_build
    if said is not None:
        assert isinstance(decision, UseImage) and decision.image.origin is ImageOrigin.DEFAULT
        assert said in decision.image.reason


def test_what_is_known_outlives_the_hub(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    fingerprint = place.fingerprint(1)
    place.kept.close()
    place.names = Names(place.names.namer, KeptNames(place.root / "kept.sqlite"))
    before = len(place.gitlab.asked)
    assert place.fingerprint(1) == fingerprint
    assert len(place.gitlab.asked) == before


@pytest.mark.parametrize("length", [7, 8, 40])
def test_a_project_that_knows_nothing_of_us_gives_its_nearest_image(
    place: Place, length: int
) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.commit(2, {"requirements.txt": FLAX, "a.py": "1"})
    place.commit(3, {"requirements.txt": MOSS})
    place.commit(4, {"requirements.txt": FLAX, "a.py": "2"})
    for number in (1, 2, 3):
        place.tag(sha(number)[:length], f"sha256:{number}")
    place.tag("latest", "sha256:9")
    facts, _ = place.read(4)
    assert facts.environment is not None and facts.environment.twin is not None
    assert facts.environment.twin.sha == sha(2)
    assert facts.environment.twin.tag.digest == "sha256:2"


def test_a_later_commit_is_a_twin_too_and_another_environment_is_none(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.commit(2, {"requirements.txt": MOSS})
    place.commit(3, {"requirements.txt": FLAX, "b": ""})
    place.tag(sha(3), "sha256:3")
    facts, _ = place.read(1)
    assert facts.environment is not None and facts.environment.twin is not None
    assert facts.environment.twin.sha == sha(3)
    other, _ = place.read(2)
    assert other.environment is not None and other.environment.twin is None


def test_twins_are_looked_for_in_bounds_and_what_was_learned_stays(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.tag(sha(1), "sha256:1")
    for number in range(2, 15):
        place.commit(number, {"requirements.txt": f"{MOSS}six=={number}\n"})
        place.tag(sha(number), f"sha256:{number}")
    place.files["0" * 40] = {"requirements.txt": FLAX, "new": ""}
    place.history.insert(0, "0" * 40)
    launches = 0
    twin = None
    while twin is None:
        facts, asked = place.read(0)
        assert len(asked) <= 25
        twin = facts.environment.twin if facts.environment else None
        launches += 1
        assert launches <= 4
    assert twin.sha == sha(1) and launches > 1


def test_a_hidden_registry_is_one_without_tags(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.gitlab.json(f"GET {API}/registry/repositories", {"message": "403 Forbidden"}, 403)
    facts, _ = place.read(1)
    assert facts.tag is None and facts.environment is not None
    assert facts.environment.tag is None and facts.environment.twin is None


def test_lists_are_followed_to_their_end(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.commit(2, {"requirements.txt": FLAX, "a": ""})
    place.tag(sha(1), "sha256:1")
    answer = place.gitlab.answers[f"GET {API}/registry/repositories/2/tags"]

    def pages(asked: Asked) -> Answer:
        query = parse_qs(asked.query)
        if query.get("page", ["1"]) == ["1"]:
            rows = json.dumps([{"name": f"v{number}"} for number in range(100)]).encode()
            return 200, {"Content-Type": "application/json", "X-Next-Page": "2"}, rows
        assert callable(answer)
        return answer(asked)

    place.gitlab.answers[f"GET {API}/registry/repositories/2/tags"] = pages
    facts, _ = place.read(2)
    assert facts.environment is not None and facts.environment.twin is not None


def test_a_forge_that_has_enough_says_for_how_long(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.gitlab.raw(f"GET {API}/repository/tree", 429, b"", Retry_After="17")
    with pytest.raises(ForgeUnavailable) as caught:
        place.read(1)
    assert caught.value.detail["retry_after"] == 17


def test_files_of_which_nothing_can_be_built_are_the_reason_and_asked_for_once(
    place: Place,
) -> None:
    place.commit(1, {"pyproject.toml": "[project", "a": ""})
    facts, _ = place.read(1)
    assert facts.environment is None and "pyproject.toml" in facts.no_environment
    _, asked = place.read(1)
    assert not any("repository" in path and "registry" not in path for path in asked)


def serve_project(place: Place, path: str, number: int) -> None:
    place.gitlab.json(
        f"GET /api/v4/projects/{quote(path, safe='')}",
        {"id": number, "path_with_namespace": path, "name": "p"},
    )


def test_a_pin_in_the_commits_file_is_looked_for_and_nothing_else(place: Place) -> None:
    place.commit(
        1, {".notebooks.toml": 'image = "registry.example/g/p:v1"', "requirements.txt": FLAX}
    )
    serve_project(place, "g/p", 5)
    place.tag("v1", "sha256:5")
    facts, asked = place.read(1)
    assert facts.pin is not None and facts.pin.tag is not None
    assert (facts.pin.tag.digest, facts.pin.source) == ("sha256:5", "`.notebooks.toml`")
    assert not any("pipelines" in path or "requirements" in path for path in asked)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("registry.example/g/p:gone", ""),
        ("elsewhere.example/g/p:v1", ""),
        ("registry.example/secret/plan:v1", ""),
        ("python:3.11", ""),
        ("g/p:v1@sha256:" + "0" * 64, "another digest"),
        ("not an image", "no image's name"),
    ],
)
def test_a_pin_that_cannot_be_had_has_no_tag(place: Place, image: str, why: str) -> None:
    place.commit(1, {"a": ""})
    serve_project(place, "g/p", 5)
    place.tag("v1", "sha256:5")
    facts, _ = place.read(1, Wish(image=image))
    assert facts.pin is not None and facts.pin.tag is None
    assert why in facts.pin.problem and bool(why) is bool(facts.pin.problem)


def test_the_launchs_own_pin_goes_before_the_files(place: Place) -> None:
    place.commit(1, {".notebooks.toml": 'image = "g/p:v1"'})
    serve_project(place, "g/p", 5)
    place.tag("v2", "sha256:2")
    facts, _ = place.read(1, Wish(image="g/p:v2"))
    assert facts.pin is not None and facts.pin.tag is not None
    assert facts.pin.source == "this launch"


@pytest.mark.parametrize("text", ["image = ", "image = 3"])
def test_a_file_that_says_nothing_understandable_is_an_error(place: Place, text: str) -> None:
    place.commit(1, {".notebooks.toml": text})
    with pytest.raises(ImageUnavailable, match=r"notebooks\.toml"):
        place.read(1)


def test_a_server_that_ran_before_keeps_its_digest(place: Place) -> None:
    place.commit(1, {"requirements.txt": FLAX})
    place.tag(sha(1), "sha256:new")
    evidence = {"tag": f"registry.example/g/p:{sha(1)}"}
    had = Image("r", "sha256:old", ImageOrigin.COMMIT, "It was there.", evidence)
    facts, _ = place.read(1, Wish(had=had))
    assert facts.kept is not None and facts.kept.exists
    facts, _ = place.read(1, Wish(had=had, new=True))
    assert facts.kept is None and facts.wants_new
    gone = Image("r", "sha256:old", ImageOrigin.ENVIRONMENT, "x", {"tag": "g/p:env-1"})
    facts, _ = place.read(1, Wish(had=gone))
    assert facts.kept is not None and not facts.kept.exists


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("g/p", ("", "g/p", "latest", "")),
        ("g/p:v1", ("", "g/p", "v1", "")),
        ("registry.example/g/p:v1", ("registry.example", "g/p", "v1", "")),
        ("localhost:5050/g/s/p:v1", ("localhost:5050", "g/s/p", "v1", "")),
        ("host:5000/g/p", ("host:5000", "g/p", "latest", "")),
        ("g/p@sha256:" + "a" * 64, ("", "g/p", "latest", "sha256:" + "a" * 64)),
        ("G/P:v1", None),
        ("g/p:v1:v2", None),
        ("g//p", None),
        ("https://registry.example/g/p", None),
        ("a" * 600, None),
    ],
)
def test_names_of_images(text: str, expected: tuple[str, ...] | None) -> None:
    found = read_reference(text)
    assert (found and (found.host, found.path, found.tag, found.digest)) == expected


def test_what_is_kept_is_bounded_and_a_broken_file_begins_anew(tmp_path: Path) -> None:
    kept = KeptNames(tmp_path / "hub" / "kept.sqlite", most=10)
    for number in range(30):
        kept.put(1, sha(number % 16), f"b{number}", {"number": number})
    assert [kept.get(1, sha(n % 16), f"b{n}") is not None for n in range(30)].count(True) == 10
    assert kept.get(1, sha(29 % 16), "b29") == {"number": 29}
    kept.put(1, sha(1), "large", {"text": "x" * 70_000})
    assert kept.get(1, sha(1), "large") is None
    kept.close()
    (tmp_path / "hub" / "kept.sqlite").write_bytes(b"no database at all" * 1000)
    kept = KeptNames(tmp_path / "hub" / "kept.sqlite")
    assert kept.get(1, sha(29 % 16), "b29") is None
    kept.put(1, sha(1), "b", {"x": 1})
    assert kept.get(1, sha(1), "b") == {"x": 1}
    kept.close()
