"""What every answer has, and the pages: text stays text, a page needs no script, AA contrast."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from web_small_forge import OTHER, SHA, commit
from web_stage import PREFIX, Stage

import notebooks_service.web as web

STYLE = (Path(web.__file__).parent / "static" / "style.css").read_text()


class Page(HTMLParser):
    """Collects what a page must not have: inline scripts and styles, addresses elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.labels: set[str] = set()
        self.controls: set[str] = set()
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag in ("script", "img", "link"):
            self.loaded.append(given.get("src") or given.get("href") or "")
        if id := given.get("id"):
            self.ids.append(id)
        if tag == "label":
            self.labels.add(given.get("for") or "")
        if tag in ("input", "select", "textarea") and given.get("type") != "hidden":
            self.controls.add(given.get("id") or "")
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))


async def test_every_page_is_whole_and_keeps_the_policy(stage: Stage) -> None:
    async with stage.browser() as browser:
        await browser.sign_in("ada")
        for path in (
            "",
            "projects?search=rivers",
            "projects?search=nothing-like-it",
            "projects/7/commits",
            "projects/7/commits?search=zzz",
            f"group/rivers/{SHA}",
            "servers",
            "secrets",
            "docs",
            "no-such-page",
            "-/sign-in-again",
        ):
            answer = await browser.get(PREFIX + path)
            page = Page(answer.text)
            assert page.inline == [], path
            assert all(url.startswith(PREFIX) for url in page.loaded), path
            assert len(page.ids) == len(set(page.ids)), path
            assert page.controls <= page.labels, path
            assert page.headings.count(1) == 1 and page.headings[0] == 1, path
            assert '<html lang="en">' in answer.text and 'class="skip"' in answer.text
            assert answer.headers["content-security-policy"].startswith("default-src 'self';")
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert answer.headers["cache-control"] == "no-store"


async def test_what_strangers_wrote_stays_text(stage: Stage) -> None:
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    project = stage.forge.projects[7]
    project["description"] = evil
    project["commits"][0] = commit(SHA, evil, f"{evil}\n\n{evil}", author=evil)
    project["branches"] = {"main": SHA, evil: OTHER}
    async with stage.browser() as browser:
        await browser.sign_in("ada")
        for path in ("", "projects/7/commits", f"group/rivers/{SHA}", f"projects?search={evil}"):
            answer = await browser.get(PREFIX + path)
            assert answer.status_code == 200, path
            assert "<script>alert" not in answer.text and "<img src=x" not in answer.text, path
            assert Page(answer.text).inline == []


async def test_lists_have_gitlabs_headers(stage: Stage) -> None:
    async with stage.api("ada") as api:
        answer = await api.get("projects?search=rivers")
        assert answer.headers["x-page"] == "1" and answer.headers["x-total"] == "1"
        assert answer.json()[0]["path_with_namespace"] == "group/rivers"
        commits = await api.get("projects/7/commits?ref=main")
        assert [each["id"] for each in commits.json()] == [SHA, OTHER]
        assert commits.json()[0]["url"] == f"{PREFIX}group/rivers/{SHA}"
        branch = await api.get("projects/7/commits?ref=feature/slash")
        assert branch.json()[0]["url"].endswith("?branch=feature%2Fslash")
        names = [each["name"] for each in (await api.get("projects/7/branches")).json()]
        assert names == ["main", "feature/slash"]
        for query in ("page=0", "page=x", "per_page=1000"):
            bad = await api.get(f"projects?{query}")
            assert bad.status_code == 422 and bad.json()["error"]["code"] == "invalid_request"
        user = (await api.get("user")).json()
        assert (user["name"], user["forge"]["username"]) == ("ada", "ada")


async def test_what_anybody_may_ask(stage: Stage) -> None:
    async with httpx.AsyncClient(base_url=stage.url + PREFIX, trust_env=False) as client:
        health = await client.get("health")
        assert health.status_code == 200
        assert health.json()["hub"]["reachable"] is True
        assert health.json()["status"] == "degraded"  # nothing listens at forge.test
        assert (await client.get("version")).json()["name"] == "notebooks-service"
        schema = (await client.get("openapi.json")).json()
        assert schema["openapi"].startswith("3.")
        assert {"get", "post", "delete"} <= schema["paths"]["/{project}/{commit}/{path}"].keys()
        for path in ("/servers", "/servers/{name}/events", "/projects/{project_id}/commits"):
            assert path in schema["paths"]
        assert "/-/at/" not in json.dumps(schema)
        docs = await client.get("docs", headers={"Accept": "text/html"})
        assert "servers/{name}/events" in docs.text
        for path in ("-/at/commit", "-/at/ref", "-/static/", "-/static/..%2fapp.py"):
            assert (await client.get(path)).status_code == 404, path
        style = await client.get("-/static/style.css")
        assert style.status_code == 200 and style.headers["cache-control"] == "no-cache"
        bare = await client.get(f"{stage.url}/services/notebooks")
        assert (bare.status_code, bare.headers["location"]) == (302, PREFIX)


async def test_head_is_get_without_a_body(stage: Stage) -> None:
    async with stage.api("ada") as api:
        for path in ("", "version", "projects", "nothing"):
            head, get = await api.head(path), await api.get(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.headers["content-type"] == get.headers["content-type"]


def test_colours_meet_aa() -> None:
    """Text 4.5:1 and controls 3:1 against every ground that they stand on, light and dark."""
    light, _, rest = STYLE.partition("@media (prefers-color-scheme: dark)")
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in (light, rest)]
    schemes[1] = {**schemes[0], **schemes[1]}
    pairs = [
        (text, ground, 4.5)
        for text, grounds in {
            "text": (
                "ground",
                "surface",
                "code-ground",
                "warn-ground",
                "bad-ground",
                "info-ground",
            ),
            "muted": ("ground", "surface", "info-ground"),
            "link": ("ground", "surface", "info-ground", "warn-ground"),
            "good": ("good-ground",),
            "info": ("info-ground", "surface"),
            "bad": ("bad-ground", "surface"),
            "on-primary": ("primary", "primary-hover"),
            "log-text": ("log-ground",),
        }.items()
        for ground in grounds
    ] + [
        (line, ground, 3.0)
        for line in ("control-line", "focus", "good", "bad", "primary")
        for ground in ("ground", "surface")
    ]
    for scheme, name in zip(schemes, ("light", "dark"), strict=True):
        for front, back, least in pairs:
            ratio = contrast(scheme[front], scheme[back])
            assert ratio >= least, f"{name}: {front} on {back} is {ratio:.2f}"


def contrast(a: str, b: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio"""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["launch.js"])
def test_scripts_put_strangers_text_in_as_text(name: str) -> None:
    script = (Path(web.__file__).parent / "static" / name).read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
