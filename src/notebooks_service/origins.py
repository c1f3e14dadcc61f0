"""Which host the service and each server are browsed at, where they have hosts of their own. Pure.

JupyterHub's ``subdomain_host`` gives one host to all servers of a person, so that a page of one could act on
the others; here every server has its own. The settings name the service's, the spawner and the service each
server's. https://jupyterhub.readthedocs.io/en/stable/explanation/websecurity.html
"""

from __future__ import annotations

import hashlib
import ipaddress
from urllib.parse import quote, urlsplit

SERVICE = "notebooks--service"
"""What JupyterHub's own hook for subdomains (``idna``) makes of the service's name."""


def server_label(user: str, server: str) -> str:
    """The first part of a server's host; at most 42 characters, of a form that no person's host has.

    JupyterHub's hosts with ``--`` in them are ``u-…--`` and seven hex digits, or a service's.
    """
    digest = hashlib.sha256(f"{user}/{server}".encode()).hexdigest()[:10]
    return f"{server}--{digest}"


def below(hub_url: str, label: str) -> str:
    """The hub's base URL with ``label`` before its host: the same scheme, port and path."""
    parts = urlsplit(hub_url)
    return parts._replace(netloc=f"{label}.{parts.netloc}").geturl()


def has_name(url: str) -> bool:
    """Whether the URL's host is a name, which others can be below, and no address."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return False
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return bool(host)
    return False


def origin(url: str) -> str:
    """``scheme://host[:port]`` of a URL, without a slash."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def server_url(hub_url: str, user: str, server: str, *, subdomains: bool) -> str:
    """Where a browser opens a named server; ends with a slash."""
    base = below(hub_url, server_label(user, server)) if subdomains else hub_url
    # The name as JupyterHub escapes it (`url_escape_path`).
    return f"{base}user/{quote(user, safe='@~')}/{server}/"
