"""Data that servers may have: what a setting may say, and who may have what, as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from notebooks_service.domain import AccessLevel
from notebooks_service.errors import InvalidRequest, SettingsInvalid
from notebooks_service.mounts import Mount, admitted, check, read
from notebooks_service.settings import load_settings
from notebooks_service.spawner.container_ends import absent

A: dict[str, Any] = {"name": "a", "path": "/srv/a", "groups": ["g"]}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"path": "srv/a"}, "absolute"),
        ({"path": "/"}, "not /"),
        ({"path": "/srv/../etc"}, "without `..`"),
        ({"path": "/srv/a/"}, "absolute"),
        ({"path": ""}, "needs `path` or `nfs`"),
        ({"nfs": "host:/a"}, "not both"),
        ({"path": "", "nfs": "host"}, "server:/directory"),
        ({"path": "", "nfs": "host:/a,addr=evil"}, "server:/directory"),
        ({"path": "", "nfs": "host:/a", "nfs_options": "vers=4 x"}, "pattern"),
        ({"groups": []}, "says nobody"),
        ({"name": "../a"}, "a mount's name"),
        ({"name": "A"}, "a mount's name"),
        ({"name": "a" * 33}, "a mount's name"),
        ({"role": "boss"}, "Input should be"),
        ({"readonly": False}, "Extra inputs"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsInvalid, match=says):
        load_settings(data=tmp_path, mounts=[{**A, **wrong}])


def test_two_of_one_name_and_our_own_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="one name"):
        load_settings(data=tmp_path, mounts=[A, A])
    for path in (tmp_path, tmp_path.parent, tmp_path / "secrets"):
        with pytest.raises(SettingsInvalid, match="the service's own"):
            load_settings(data=tmp_path, mounts=[{**A, "path": str(path)}])


@pytest.mark.parametrize(
    ("who", "project", "user", "level", "expected"),
    [
        ({"projects": ["g/s/p"]}, "g/s/p", "ada", "developer", True),
        ({"projects": ["g/s/p"]}, "G/S/p", "ada", "developer", True),
        ({"projects": ["g/s/p"]}, "g/s/p2", "ada", "developer", False),
        ({"projects": ["g/s/p"]}, "s/p", "ada", "developer", False),
        ({"groups": ["g"]}, "g/s/t/p", "ada", "developer", True),
        ({"groups": ["g/s"]}, "g/s/p", "ada", "developer", True),
        ({"groups": ["g/s"]}, "g/sp/p", "ada", "developer", False),
        ({"groups": ["g/s"]}, "g/p", "ada", "developer", False),
        ({"groups": ["g"], "projects": ["h/p"]}, "h/p", "ada", "developer", True),
        ({"users": ["ada"]}, "any/where", "ada", "developer", True),
        ({"users": ["ada"]}, "any/where", "bob", "owner", False),
        ({"users": ["ada"], "groups": ["g"]}, "h/p", "ada", "developer", False),
        ({"groups": ["g"]}, "g/p", "ada", "reporter", False),
        ({"groups": ["g"]}, "g/p", "ada", "none", False),
        ({"groups": ["g"], "role": "guest"}, "g/p", "ada", "guest", True),
        ({"groups": ["g"], "role": "read"}, "g/p", "ada", "none", True),
    ],
)
def test_who_may_have_it(
    who: dict[str, Any], project: str, user: str, level: str, expected: bool
) -> None:
    mount = Mount(name="a", path="/srv/a", **who)
    found = admitted([mount], project, user, AccessLevel(level))
    assert bool(found) is expected
    if not expected:
        with pytest.raises(InvalidRequest, match="no data `a`"):
            check(found, ["a"])


@pytest.mark.parametrize("wrong", ["a", ["a", "a"], [1], ["../a"], [["a"]], {"a": 1}, ["a"] * 21])
def test_what_is_no_choice(wrong: object) -> None:
    with pytest.raises(InvalidRequest, match="`mounts`"):
        read(wrong)


def test_what_the_engine_is_asked_for() -> None:
    path = Mount(**A)
    assert path.engine("nb") == {
        "Type": "bind", "Source": "/srv/a", "Target": "/data/a", "ReadOnly": True,
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": True},
    }  # fmt: skip
    nfs = Mount(name="a", nfs="[fd00::1]:/export/x", nfs_options="vers=4.2", users=("ada",))
    found = nfs.engine("nb")
    assert found["VolumeOptions"]["DriverConfig"] == {
        "Name": "local",
        "Options": {
            "type": "nfs",
            "o": "addr=fd00::1,ro,nosuid,nodev,vers=4.2",
            "device": ":/export/x",
        },
    }
    assert (found["Type"], found["ReadOnly"]) == ("volume", True)
    # The engine keeps a volume's options.
    other = nfs.model_copy(update={"nfs_options": ""}).engine("nb")
    assert other["Source"] != found["Source"]
    assert str(found["Source"]).startswith("nb-data-a-")


def test_a_source_that_is_not_there_is_named() -> None:
    said = 'invalid mount config for type "bind": bind source path does not exist: /srv/a'
    assert absent(said, [Mount(**{**A, "name": "b", "path": "/srv/b"}), Mount(**A)]) == "a"
    assert absent(said, []) is None
