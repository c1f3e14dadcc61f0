"""``/jwt/auth`` from the outside: who gets which token, and a real registry and skopeo that use it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from forge_fixtures import ForgeProcess, make_repository
from notebooks_service.forge import deploy_tokens
from notebooks_service.forge.models import Project
from registry_fixtures import Registry
from runner_fixtures import RawRunner, Workspace

SERVICE = "container_registry"


def ask(
    forge: ForgeProcess, login: tuple[str, str] | None, *scopes: str, **more: str
) -> httpx.Response:
    query = [("service", SERVICE), *(("scope", scope) for scope in scopes), *more.items()]
    return httpx.get(f"{forge.url}/jwt/auth", params=query, auth=login)


def claims(forge: ForgeProcess, answer: httpx.Response) -> dict[str, Any]:
    """What the token says; checked by its key, which is found as docker's registry finds it."""
    assert answer.status_code == 200, answer.text
    keys = json.loads((forge.data / "forge" / "registry" / "token-keys.json").read_text())["keys"]
    token = answer.json()["token"]
    kid = jwt.get_unverified_header(token)["kid"]
    key = jwt.PyJWK(next(key for key in keys if key["kid"] == kid))
    found: dict[str, Any] = jwt.decode(token, key, algorithms=["RS256"], audience=SERVICE)
    return found


def access(forge: ForgeProcess, login: tuple[str, str] | None, *scopes: str) -> dict[str, str]:
    found = claims(forge, ask(forge, login, *scopes))["access"]
    return {entry["name"]: ",".join(entry["actions"]) for entry in found}


@pytest.fixture(scope="module")
def places(ci_forge: ForgeProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One project of each visibility, and people of each level in the private one."""
    root = tmp_path_factory.mktemp("places")
    make_repository(root / "thing")
    owner = ci_forge.user()
    for visibility in ("public", "internal", "private"):
        ci_forge.project(root / "thing", f"places/{visibility}", owner, visibility=visibility)
    people = {}
    for level in ("guest", "reporter", "developer", "maintainer"):
        people[level] = ci_forge.user()
        ci_forge.administration.add_member("places/private", people[level], level)
    return {**people, "owner": owner, "stranger": ci_forge.user()}


EVERY = tuple(
    f"repository:places/{name}:pull,push,delete" for name in ("private", "internal", "public")
)

TABLE = [
    ("nobody", (), {"places/public": "pull"}),
    ("stranger", ("api",), {"places/internal": "pull", "places/public": "pull"}),
    ("guest", ("api",), {"places/internal": "pull", "places/public": "pull"}),
    (
        "reporter",
        ("api",),
        {"places/private": "pull", "places/internal": "pull", "places/public": "pull"},
    ),
    (
        "reporter",
        ("read_registry",),
        {"places/private": "pull", "places/internal": "pull", "places/public": "pull"},
    ),
    (
        "developer",
        ("api",),
        {"places/private": "pull,push", "places/internal": "pull", "places/public": "pull"},
    ),
    (
        "developer",
        ("read_registry",),
        {"places/private": "pull", "places/internal": "pull", "places/public": "pull"},
    ),
    ("developer", ("write_registry",), {"places/private": "push", "places/public": "pull"}),
    (
        "maintainer",
        ("api",),
        {"places/private": "pull,push,delete", "places/internal": "pull", "places/public": "pull"},
    ),
    (
        "maintainer",
        ("read_registry", "write_registry"),
        {"places/private": "pull,push", "places/internal": "pull", "places/public": "pull"},
    ),
]


@pytest.mark.parametrize(("who", "scopes", "expected"), TABLE)
def test_what_a_login_may_do(
    ci_forge: ForgeProcess,
    places: dict[str, Any],
    who: str,
    scopes: tuple[str, ...],
    expected: dict[str, str],
) -> None:
    login = (places[who], ci_forge.token(places[who], *scopes)) if scopes else None
    assert access(ci_forge, login, *EVERY) == expected
    assert access(ci_forge, login, " ".join(EVERY)) == expected


def test_the_token_and_its_refusals(ci_forge: ForgeProcess, places: dict[str, Any]) -> None:
    name = places["developer"]
    answer = ask(
        ci_forge,
        (name, ci_forge.token(name)),
        "repository:places/private:pull",
        account=name,
        offline_token="true",
    )
    found = claims(ci_forge, answer)
    assert (found["sub"], found["iss"]) == (name, "notebooks-forge")
    assert (
        found["exp"] - found["iat"] == answer.json()["expires_in"] == 300
        and found["nbf"] <= time.time()
    )
    [entry] = found["access"]
    assert entry["type"] == "repository" and entry["meta"]["project_path"] == "places/private"
    kid = jwt.get_unverified_header(answer.json()["token"])["kid"]
    assert len(kid.split(":")) == 12 and {len(group) for group in kid.split(":")} == {4}
    assert answer.headers["cache-control"] == "no-store"
    # Logging in asks for nothing; a wrong login is no nobody.
    assert claims(ci_forge, ask(ci_forge, (name, ci_forge.token(name))))["access"] == []
    for login in (
        (name, "wrong"),
        ("nobody-at-all", "wrong"),
        ("oauth2", "x"),
        ("gitlab-ci-token", "x"),
    ):
        refused = ask(ci_forge, login, "repository:places/public:pull")
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (401, "UNAUTHORIZED")
    refused = ask(ci_forge, (name, ci_forge.token(name, "read_user")))
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (403, "DENIED")
    assert ask(ci_forge, None).status_code == 403
    assert httpx.get(f"{ci_forge.url}/jwt/auth?service=other").status_code == 404


@pytest.mark.parametrize(
    "scope",
    [
        "repository:places/none:pull",
        "repository:PLACES/PRIVATE:pull",
        "repository:places/../places/private:pull",
        "repository:places/private/:pull",
        "repository:private:pull",
        "repository:places/private:",
        "repository:places/private",
        "repository:places/private:everything",
        "registry:catalog:*",
        "registry:other:*",
        "repository(plugin):places/private:pull",
        ":::",
        "x" * 5000,
        "repository:" + "a/" * 3000 + "b:pull",
    ],
)
def test_a_scope_that_is_none_gives_nothing(
    ci_forge: ForgeProcess, places: dict[str, Any], scope: str
) -> None:
    login = (places["maintainer"], ci_forge.token(places["maintainer"]))
    assert access(ci_forge, login, scope) == {}


def test_images_below_a_project_and_the_catalog(
    ci_forge: ForgeProcess, places: dict[str, Any]
) -> None:
    login = (places["developer"], ci_forge.token(places["developer"]))
    assert access(ci_forge, login, "repository:places/private/some/image:pull,push") == {
        "places/private/some/image": "pull,push"
    }
    admin = ci_forge.user(admin=True)
    assert access(ci_forge, (admin, ci_forge.token(admin)), "registry:catalog:*") == {
        "catalog": "*"
    }
    assert (
        access(ci_forge, (admin, ci_forge.token(admin, "read_registry")), "registry:catalog:*")
        == {}
    )


def test_other_logins(ci_forge: ForgeProcess, places: dict[str, Any], tmp_path: Path) -> None:
    scope = "repository:places/private:pull,push"
    # A password, which GitLab takes as well.
    password = ci_forge.administration.set_password(places["developer"])
    assert access(ci_forge, (places["developer"], password), scope) == {
        "places/private": "pull,push"
    }
    # A deploy token.
    with ci_forge.administration.database.write() as session:
        project = session.query(Project).filter_by(full_path="places/private").one()
        row, token = deploy_tokens.create(session, project, "puller", ["read_registry"])
        login = (row.username, token)
    assert access(ci_forge, login, scope, "repository:places/internal:pull") == {
        "places/private": "pull"
    }
    assert ask(ci_forge, ("somebody", token), scope).status_code == 401
    # A job pushes to its own project, and nowhere else although its person may.
    space = Workspace(ci_forge, tmp_path)
    for path in ("places/private", "places/internal"):
        ci_forge.administration.add_member(path, space.username, "maintainer")
    space.push('job: {script: ["true"]}')
    runner = RawRunner(ci_forge)
    job = runner.take()
    login = ("gitlab-ci-token", job["token"])
    own = space.path.lower()
    scopes = [f"repository:{path}:pull,push,delete" for path in (own, "places/internal")]
    # The private one has not named the job's project: nothing at all there.
    assert access(ci_forge, login, *scopes, scope) == {
        own: "pull,push,delete",
        "places/internal": "pull",
    }
    runner.put(job, "success")
    assert ask(ci_forge, login, scope).status_code == 401


def test_somebody_who_lost_their_right_gets_no_new_token(
    ci_forge: ForgeProcess, places: dict[str, Any], tmp_path: Path
) -> None:
    space = Workspace(ci_forge, tmp_path)
    person = ci_forge.user()
    ci_forge.administration.add_member(space.path, person, "developer")
    login = (person, ci_forge.token(person))
    scope = f"repository:{space.path}:pull"
    assert access(ci_forge, login, scope) == {space.path: "pull"}
    member = next(one for one in space.api.members.list(get_all=True) if one.username == person)
    member.delete()
    assert access(ci_forge, login, scope) == {}


# With the real registry -----------------------------------------------------------------------


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_a_real_registry_believes_the_token(
    ci_forge: ForgeProcess, places: dict[str, Any], registry: Registry
) -> None:
    developer = (places["developer"], ci_forge.token(places["developer"]))
    reporter = (places["reporter"], ci_forge.token(places["reporter"], "read_registry"))
    stranger = (places["stranger"], ci_forge.token(places["stranger"]))
    base = "/v2/places/private"

    def upload(content: bytes) -> None:
        began = registry.call(ci_forge, developer, "POST", f"{base}/blobs/uploads/")
        assert began.status_code == 202, began.text
        where = began.headers["location"]
        put = registry.call(
            ci_forge, developer, "PUT", f"{where}&digest={digest(content)}", content=content
        )
        assert put.status_code == 201, put.text

    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}
    ).encode()
    upload(config)
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(config),
                "digest": digest(config),
            },
            "layers": [],
        }
    ).encode()
    path = f"{base}/manifests/{'a' * 40}"
    put = registry.call(
        ci_forge, developer, "PUT", path, content=manifest, headers={"Content-Type": kind}
    )
    assert put.status_code == 201 and put.headers["docker-content-digest"] == digest(manifest)
    got = registry.call(ci_forge, reporter, "GET", path, headers={"Accept": kind})
    assert (got.status_code, got.content) == (200, manifest)
    for login, method in ((stranger, "GET"), (None, "GET"), (reporter, "PUT")):
        refused = registry.call(
            ci_forge,
            login,
            method,
            path,
            content=manifest,
            headers={"Accept": kind, "Content-Type": kind},
        )
        assert refused.status_code == 401, (login, refused.text)
    # A token for another service, or with a changed claim, is not believed.
    token = ask(ci_forge, developer, "repository:places/private:pull").json()["token"]
    bearer = {"Authorization": f"Bearer {token}", "Accept": kind}
    assert httpx.get(f"{registry.url}{path}", headers=bearer).status_code == 200
    head, body, mark = token.split(".")
    text = base64.urlsafe_b64decode(body + "==").replace(b"places/private", b"places/secrets")
    forged = base64.urlsafe_b64encode(text).rstrip(b"=").decode()
    bearer["Authorization"] = f"Bearer {head}.{forged}.{mark}"
    assert (
        httpx.get(f"{registry.url}/v2/places/secrets/tags/list", headers=bearer).status_code == 401
    )


def test_skopeo_pushes_and_pulls(
    ci_forge: ForgeProcess, places: dict[str, Any], registry: Registry, tmp_path: Path
) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed here (Debian has it: apt-get install skopeo)")
    layout = image_layout(tmp_path / "layout")
    name = places["developer"]
    host = f"docker://127.0.0.1:{registry.port}"
    creds = f"{name}:{ci_forge.token(name)}"

    def skopeo(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["skopeo", "--insecure-policy", "--tmpdir", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    pushed = skopeo(
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        creds,
        f"oci:{layout}:v1",
        f"{host}/places/private/image:v1",
    )
    assert pushed.returncode == 0, pushed.stderr
    reporter = f"{places['reporter']}:{ci_forge.token(places['reporter'], 'read_registry')}"
    seen = skopeo(
        "inspect", "--tls-verify=false", "--creds", reporter, f"{host}/places/private/image:v1"
    )
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["RepoTags"] == ["v1"]
    pulled = skopeo(
        "copy",
        "--src-tls-verify=false",
        "--src-creds",
        reporter,
        f"{host}/places/private/image:v1",
        f"dir:{tmp_path / 'pulled'}",
    )
    assert pulled.returncode == 0, pulled.stderr
    stranger = f"{places['stranger']}:{ci_forge.token(places['stranger'])}"
    refused = skopeo(
        "inspect", "--tls-verify=false", "--creds", stranger, f"{host}/places/private/image:v1"
    )
    assert refused.returncode != 0 and "denied" in refused.stderr + refused.stdout
    refused = skopeo(
        "copy",
        "--dest-tls-verify=false",
        "--dest-creds",
        reporter,
        f"oci:{layout}:v1",
        f"{host}/places/private/image:v2",
    )
    assert refused.returncode != 0


def image_layout(path: Path) -> Path:
    """An image of one small file, as an OCI layout."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        entry = tarfile.TarInfo("hello")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes, kind: str) -> dict[str, Any]:
        (blobs / hashlib.sha256(content).hexdigest()).write_bytes(content)
        return {"mediaType": kind, "digest": digest(content), "size": len(content)}

    tar = add(layer.getvalue(), "application/vnd.oci.image.layer.v1.tar")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [tar["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": add(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [tar],
    }
    entry = add(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    index = {
        "schemaVersion": 2,
        "manifests": [{**entry, "annotations": {"org.opencontainers.image.ref.name": "v1"}}],
    }
    (path / "index.json").write_text(json.dumps(index))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return path
