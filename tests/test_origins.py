"""Hosts of their own: names as a table, and that none can be another's."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyterhub.utils import subdomain_hook_idna
from pydantic import ValidationError

from notebooks_service import origins
from notebooks_service.settings import Settings

SERVER = "p7-abcdefghijklmnop"


@pytest.mark.parametrize(
    ("hub", "user", "subdomains", "url"),
    [
        ("http://127.0.0.1:8000/", "ada", False, f"http://127.0.0.1:8000/user/ada/{SERVER}/"),
        ("https://hub.example/x/", "ada", True, f"https://{SERVER}--3526247a76.hub.example/x/user/ada/{SERVER}/"),
        ("http://notebooks.localhost:8000/", "zoë", True, f"http://{SERVER}--97856503d1.notebooks.localhost:8000/user/zo%C3%AB/{SERVER}/"),
    ],
)  # fmt: skip
def test_where_a_server_is_opened(hub: str, user: str, subdomains: bool, url: str) -> None:
    assert origins.server_url(hub, user, SERVER, subdomains=subdomains) == url


def test_the_service_is_where_jupyterhub_routes_it() -> None:
    settings = Settings(hub_url="https://hub.example:8443/base", subdomains=True)
    host = subdomain_hook_idna("notebooks", "hub.example", kind="service")
    assert settings.service_url == f"https://{host}:8443/base/services/notebooks/"
    assert origins.origin(settings.service_url) == f"https://{host}:8443"


@given(st.text(min_size=1, max_size=255), st.text(min_size=1, max_size=255))
def test_a_servers_host_is_nobody_elses(user: str, other: str) -> None:
    label = origins.server_label(user, SERVER)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", label)
    theirs = subdomain_hook_idna(other, "h", kind="user").removesuffix(".h")
    service = subdomain_hook_idna(other, "h", kind="service").removesuffix(".h")
    assert label not in (theirs, service)
    assert user == other or label != origins.server_label(other, SERVER)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://[::1]:8000", "http://", "http://[bad"]
)
def test_an_address_has_nothing_below_it(url: str) -> None:
    with pytest.raises(ValidationError, match="hub_url"):
        Settings(hub_url=url, subdomains=True)
