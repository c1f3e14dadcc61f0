"""What a server's containers are, as tables: names, labels, variables, networks; and the lines that they print."""

from __future__ import annotations

import ipaddress
import json
import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.domain import ForgeUser, Image, ImageOrigin, Project
from notebooks_service.errors import CloneFailed, NoSpace, SettingsInvalid
from notebooks_service.settings import Settings, load_settings
from notebooks_service.spawner import containers, networks
from notebooks_service.spawner.cloning import CARRIED, CloneWords
from notebooks_service.spawner.container_logs import Lines, ProgramOutput
from notebooks_service.spawner.containers import Limits, Ours
from notebooks_service.spawner.docker import instance
from notebooks_service.spawner.programs import WHOLE, archive
from notebooks_service.spawner.runtime import ServerKey, ServerPlan
from notebooks_service.spawner.volumes import VolumeDirectory, volume_of

Net = ipaddress.IPv4Network
RANGE = Net("10.203.0.0/16")
DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("reference", "name", "repository"),
    [
        ("127.0.0.1:5000/group/project:abc", "127.0.0.1:5000/group/project", "group/project"),
        (f"registry.example.org/g/s/p@{DIGEST}", "registry.example.org/g/s/p", "g/s/p"),
        (f"host:5000/p:tag@{DIGEST}", "host:5000/p", "p"),
        ("host:5000/p", "host:5000/p", "p"),
        ("localhost/a/b:1", "localhost/a/b", "a/b"),
        ("notebooks-init", "notebooks-init", "notebooks-init"),
        ("group/project:1", "group/project", "group/project"),
    ],
)
def test_the_name_of_an_image(reference: str, name: str, repository: str) -> None:
    assert containers.image_name(reference) == name
    assert containers.repository(name) == repository


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([], "10.203.1.0/29"),
        (["10.203.1.0/29"], "10.203.1.8/29"),
        (["10.203.1.8/29"], "10.203.1.0/29"),
        (["10.203.1.0/29", "10.203.1.8/29", "10.203.1.24/29"], "10.203.1.16/29"),
        (["10.203.1.4/30"], "10.203.1.8/29"),
        (["192.168.0.0/16", "172.17.0.0/16"], "10.203.1.0/29"),
        (["10.128.0.0/9"], None),
        (["10.203.0.0/17"], "10.203.128.0/29"),
        (["10.203.0.0/17", "10.203.128.0/17"], None),
    ],
)
def test_the_next_free_network(taken: list[str], expected: str | None) -> None:
    found = networks.free(RANGE, map(Net, taken))
    assert found == (None if expected is None else Net(expected))


def test_a_network_that_the_host_has_is_passed_over() -> None:
    first = networks.free(RANGE, [])
    assert first is not None
    second = networks.free(RANGE, [], first)
    assert second == Net("10.203.1.8/29")
    assert networks.free(Net("10.203.0.0/24"), []) is None
    last = Net("10.203.255.248/29")
    assert networks.free(RANGE, [], Net("10.203.255.240/29")) == last
    assert networks.free(RANGE, [], last) is None


def test_all_networks_of_a_range_are_different_and_in_it() -> None:
    small = Net("10.9.0.0/23")
    found: list[Net] = []
    while (each := networks.free(small, found)) is not None:
        assert each.subnet_of(small)
        assert not any(each.overlaps(other) for other in (*found, networks.front(small)))
        found.append(each)
    assert len(found) == 32


def test_addresses_of_networks() -> None:
    listed: list[dict[str, Any]] = [
        {"IPAM": {"Config": [{"Subnet": "172.17.0.0/16"}, {"Subnet": "fd00::/64"}]}},
        {"IPAM": {"Config": None}},
        {"IPAM": None},
        {},
        {"IPAM": {"Config": [{}]}},
    ]
    assert networks.addresses(listed) == [Net("172.17.0.0/16")]


def plan(**environment: str) -> ServerPlan:
    return ServerPlan(
        key=ServerKey("ada", "p1-x"),
        launch="l1",
        project=Project(
            1, "group/project", "Project", "main", "private", "http://forge/group/project"
        ),
        commit="c" * 40,
        branch="main",
        image=Image(f"host:1/group/project:{'c' * 40}", DIGEST, ImageOrigin.COMMIT, "so"),
        person=ForgeUser(1, "ada", "Ada {0}", "ada@example.org"),
        environment=environment,
        clone={"NOTEBOOKS_LFS_AUTO_FETCH": "0", "NOTEBOOKS_SECRET_WAY": "x"},
    )


def docker_settings(tmp_path: Path, **more: object) -> Settings:
    return load_settings(
        data=tmp_path, runtime="docker", hub_url="https://hub.example.org/jupyter", **more
    )


def test_variables_are_true_inside(tmp_path: Path) -> None:
    settings = docker_settings(tmp_path)
    assert settings.gateway_url == "http://notebooks.internal:8000/jupyter/services/notebooks/git/"
    found = containers.environment(
        plan(
            JUPYTERHUB_API_URL="http://10.203.0.1:700/jupyter/hub/api",
            JUPYTERHUB_ACTIVITY_URL="http://10.203.0.1:700/jupyter/hub/api/users/ada/activity",
            JUPYTERHUB_SERVICE_PREFIX="/jupyter/user/ada/p1-x/",
            JUPYTERHUB_HOST="https://hub.example.org",
            HOME="/root",
        ),
        settings,
    )
    inside = "http://notebooks.internal:8000/jupyter/hub/api"
    assert found["JUPYTERHUB_API_URL"] == inside
    assert found["JUPYTERHUB_ACTIVITY_URL"] == f"{inside}/users/ada/activity"
    assert found["JUPYTERHUB_SERVICE_URL"] == "http://0.0.0.0:8888/jupyter/user/ada/p1-x/"
    assert (found["HOME"], found["NOTEBOOKS_WORK_DIR"]) == ("/work/home", "/work/work")
    assert found["JUPYTERHUB_HOST"] == "https://hub.example.org"
    # How it is cloned is not the server's business, but what it does with large files later is.
    assert "NOTEBOOKS_SECRET_WAY" not in found
    assert found["NOTEBOOKS_LFS_AUTO_FETCH"] == "0"
    assert "NOTEBOOKS_SECRET_WAY" in containers.init_environment(plan(), settings)
    assert not [name for name in found if name.lower().endswith("_proxy")]


def test_a_server_is_told_of_its_way_out_if_it_has_one(tmp_path: Path) -> None:
    settings = docker_settings(tmp_path, allowed_egress=["pypi.org"])
    found = containers.environment(plan(), settings)
    proxy = "http://notebooks.internal:3128"
    assert {found[name] for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY")} == {
        proxy
    }
    # Hub and gateway are not on the outside.
    assert found["no_proxy"] == found["NO_PROXY"]
    assert found["no_proxy"].startswith("notebooks.internal,")


def test_a_server_has_no_rights_and_all_limits(tmp_path: Path) -> None:
    traits = containers.server_traits(
        Ours("abc"), plan(), image="i", name="n", volume="v", programs={"p": "/opt/notebooks"},
        network="net", limits=Limits(1.5, 1000, 7),
    )  # fmt: skip
    host = traits["extra_host_config"]
    assert (host["cap_drop"], host["security_opt"], host["pids_limit"]) == (
        ["ALL"],
        ["no-new-privileges"],
        7,
    )
    assert (traits["mem_limit"], host["memswap_limit"], traits["cpu_limit"]) == (1000, 1000, 1.5)
    assert traits["read_only_volumes"] == {"p": "/opt/notebooks"}
    assert traits["extra_create_kwargs"]["user"] == "1000:1000"
    assert host["auto_remove"] is False
    # Secrets are in memory that nobody else of the container may read, if it has other users.
    options = host["tmpfs"]["/run/secrets"].split(",")
    assert {"nosuid", "nodev", "noexec", "mode=0700", "uid=1000", "gid=1000"} <= set(options)
    # DockerSpawner renders the image's name into the container's: ours has to come after.
    assert list(traits).index("object_name") > list(traits).index("image")
    unlimited = containers.server_traits(
        Ours("abc"), plan(), image="i", name="n", volume="v", programs={}, network="net", limits=Limits(0, 0, 0),
    )  # fmt: skip
    assert not {"mem_limit", "cpu_limit"} & unlimited.keys()
    assert not {"pids_limit", "memswap_limit"} & unlimited["extra_host_config"].keys()


@pytest.mark.parametrize(
    "text", ["{", "}", "{0}", "{username.__class__}", "{{x}}", "plain", "%s {}"]
)
def test_a_brace_of_ours_is_no_template(text: str) -> None:
    assert containers.literal(text).format(username="ada") == text
    nested = containers.literal({text: [text, {"a": text}], "n": 1})
    assert nested["n"] == 1
    assert next(iter(nested)).format(username="ada") == text


def test_labels_find_what_is_ours() -> None:
    ours = Ours("abc")
    key = ServerKey("ada", "p1-x")
    assert ours.filters("server", key) == {
        "label": [
            "notebooks.instance=abc", "notebooks.kind=server", "notebooks.user=ada", "notebooks.server=p1-x",
        ]
    }  # fmt: skip
    labels = ours.labels("server", key, "l1")
    assert all(
        each in [f"{k}={v}" for k, v in labels.items()]
        for each in ours.filters("server", key)["label"]
    )
    assert ours.fresh() != ours.fresh()


def test_the_instance_is_kept(tmp_path: Path) -> None:
    settings = docker_settings(tmp_path)
    first = instance(settings)
    assert instance(settings) == first
    assert instance(docker_settings(tmp_path, docker_instance="mine")) == "mine"


@pytest.mark.parametrize("value", ["10.0.0.0/25", "nonsense", "10.0.0.1/16", "fd00::/64"])
def test_a_range_that_is_none_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(SettingsInvalid, match="docker_networks"):
        docker_settings(tmp_path, docker_networks=value)


def test_programs_are_the_same_archive_for_the_same_files() -> None:
    first = archive(CARRIED)
    assert archive(CARRIED) == first
    with tarfile.open(fileobj=BytesIO(first)) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert {"clone.py", "unsaved.py", "serve.py", "serve.sh", "credential_helper.py"} <= set(names)
    assert names[-1] == WHOLE
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, 0)}


def test_lines_are_cut_however_they_come() -> None:
    lines = Lines()
    found = [line for part in (b"a", b"b\nc\n", b"", b"d\n\ne") for line in lines.cut(part)]
    assert found == [b"ab", b"c", b"d", b""]
    assert lines.cut(b"x" * 100_000) == []
    # What was too long is nobody's line, and the next one is one again.
    assert lines.cut(b"y\nz\n") == [b"y", b"z"]


def test_what_a_program_says_is_told_apart(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    path = tmp_path / "log"
    errors = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        output = ProgramOutput(heard.append, errors)
        output(1, b'{"message": "one"}\nno json\n[1]\n{"mess')
        output(2, b"an error\n")
        output(1, b'age": "two"}\n')
    finally:
        os.close(errors)
    assert heard == [{"message": "one"}, {"message": "two"}]
    assert path.read_text() == "an error\n"


@pytest.mark.parametrize(
    ("last", "code", "error", "says"),
    [
        ({"error": "no_space"}, 15, NoSpace, "disk"),
        ({"error": "no_room", "message": "Too big."}, 16, NoSpace, "Too big"),
        ({"phase": "failed", "message": "It went wrong."}, 1, CloneFailed, "It went wrong"),
        ({"phase": "failed", "message": "Told to stop."}, 143, CloneFailed, "container engine"),
        ({"phase": "receiving", "message": "Half of it."}, 1, CloneFailed, "not be cloned"),
        # It had no time to say anything of its end.
        ({"phase": "receiving", "message": "Half of it."}, 143, CloneFailed, "container engine"),
        ({}, 137, CloneFailed, "container engine"),
        ({}, -9, CloneFailed, "container engine"),
    ],
)
def test_how_a_clone_ends(
    last: dict[str, Any], code: int, error: type[Exception], says: str
) -> None:
    told: list[str] = []
    words = CloneWords(lambda sentence, detail: told.append(sentence))
    words.hear(last)
    with pytest.raises(error, match=says):
        words.facts(code)
    words.hear({"message": "There.", "folder": "project", "phase": "x", "notes": ["A note."]})
    assert words.facts(0) == {"folder": "project", "notes": ["A note."]}
    assert told[-2:] == ["There.", "A note."]


def test_a_volume_is_noted_before_it_is_made(tmp_path: Path) -> None:
    directory = VolumeDirectory(tmp_path, ServerKey("ada", "p1-x"))
    assert directory.volume is None
    directory.make()
    directory.keep_volume("notebooks-abc-1")
    assert directory.read_cloned() is None
    directory.write_cloned({"commit": "c"})
    assert directory.read_cloned() == {"commit": "c"}
    assert volume_of(directory.path) == directory.volume == "notebooks-abc-1"
    assert json.loads(directory.cloned.read_text()) == {"commit": "c"}
