"""The doctor's decisions about a forge and a hub, as tables: facts in, codes out. No network."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from notebooks_service.doctor.application import Application, judge_application
from notebooks_service.doctor.asking import NO_ANSWER, Answer, origin, shown
from notebooks_service.doctor.certificate import Certificate, judge_certificate
from notebooks_service.doctor.findings import Finding, eased, plain, problem, without
from notebooks_service.doctor.hub import Hub, judge_hub, judge_webhooks
from notebooks_service.doctor.hub_config import judge_hub_config, judge_origin
from notebooks_service.doctor.project import ProjectFacts, judge_project
from notebooks_service.doctor.reach import Reach, judge_reach, judge_token
from notebooks_service.doctor.registry import Registry, judge_registry, read_challenge
from notebooks_service.doctor.traffic import (
    Proxies,
    judge_clock,
    judge_limits,
    judge_proxies,
    proxy_for,
)
from notebooks_service.doctor.version import judge_version

FORGE = "https://gitlab.example.org"
NEWER = ("read_user", "read_api", "read_repository", "write_repository", "read_registry")
DAY = 86400.0


def said(body: Any, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, named, json.dumps(body).encode())


def codes(findings: Sequence[Finding]) -> list[str]:
    for one in findings:
        assert one.sentence.rstrip().endswith((".", ")")), one
        assert "\n" not in one.sentence + one.advice
    return [one.code for one in findings]


V17 = said({"version": "17.8.0-ee"})
ISSUER = said({"issuer": FORGE})
LOGIN = "https://gitlab.example.org/gitlab/users/sign_in"


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Reach(FORGE, True, V17, NO_ANSWER, ISSUER), ["forge.answers", "forge.name"]),
        (Reach(FORGE, True, V17), ["forge.answers", "forge.name-unknown"]),
        (
            Reach(FORGE, True, V17, NO_ANSWER, said({"issuer": "http://inside:8080"})),
            ["forge.answers", "forge.other-name"],
        ),
        (
            Reach(f"{FORGE}/gitlab", True, V17, NO_ANSWER, ISSUER),
            ["forge.answers", "forge.other-name"],
        ),
        (
            Reach(FORGE, True, V17, NO_ANSWER, said({"issuer": f"{FORGE}/gitlab"})),
            ["forge.answers", "forge.other-name"],
        ),
        (
            Reach("http://gitlab.example.org", True, V17, NO_ANSWER, said({"issuer": "http://gitlab.example.org"})),
            ["forge.answers", "forge.name", "forge.no-tls"],
        ),
        (
            Reach(FORGE, False, said({"message": "401 Unauthorized"}, 401), NO_ANSWER, ISSUER),
            ["forge.answers", "forge.name"],
        ),
        (Reach(FORGE, True, Answer(trouble="tls")), []),
        (Reach(FORGE, True, Answer(429, body=b"Retry later")), []),
        (Reach(FORGE, True, Answer(trouble="address")), ["forge.unknown-host"]),
        (Reach(FORGE, True, Answer(trouble="refused")), ["forge.refused"]),
        (Reach(FORGE, True, Answer(trouble="time")), ["forge.slow"]),
        (Reach(FORGE, True, Answer(trouble="proxy")), ["forge.proxy-fails"]),
        (Reach(FORGE, True, Answer(trouble="large")), ["forge.no-gitlab"]),
        (Reach(FORGE, True, Answer(301, elsewhere="https://other")), ["forge.moved"]),
        (Reach(FORGE, True, Answer(502, body=b"<html>")), ["forge.failing"]),
        (Reach(FORGE, True, Answer(200, body=b"<html>")), ["forge.no-gitlab"]),
        (Reach(FORGE, True, Answer(404, body=b"<html>")), ["forge.no-gitlab"]),
        (
            Reach(FORGE, True, Answer(404), Answer(302, {"location": LOGIN})),
            ["forge.relative-root"],
        ),
        (
            Reach(FORGE, True, Answer(404), Answer(302, {"location": "/gitlab/users/sign_in"})),
            ["forge.relative-root"],
        ),
        (
            Reach(FORGE, True, Answer(404), Answer(302, {"location": "https://evil/x/users/sign_in"})),
            ["forge.no-gitlab"],
        ),
    ],
)  # fmt: skip
def test_reach(facts: Reach, wanted: list[str]) -> None:
    assert codes(judge_reach(facts)) == wanted


@pytest.mark.parametrize(
    ("with_token", "api", "wanted"),
    [
        (False, said({"message": "401 Unauthorized"}, 401), "token.none"),
        (True, said({"message": "401 Unauthorized"}, 401), "token.refused"),
        (True, said({"error": "insufficient_scope"}, 403), "token.narrow"),
        (True, V17, "token.accepted"),
    ],
)
def test_token(with_token: bool, api: Answer, wanted: str) -> None:
    assert codes(judge_token(Reach(FORGE, with_token, api))) == [wanted]


@pytest.mark.parametrize(
    ("version", "scopes", "wanted"),
    [
        ("17.8.0-notebooks", NEWER, "version.embedded"),
        ("17.8.0", NEWER, "version.supported"),
        ("15.2.0-pre", NEWER, "version.supported"),
        ("19.11.3-ee", NEWER, "version.supported"),
        ("20.0.0", NEWER, "version.new"),
        ("15.1.9", NEWER, "version.old"),
        ("14.5.0", NEWER, "version.needs-api-scope"),
        ("14.5.0", ("api",), "version.old"),
        ("8.17.0", ("read_user", "api"), "version.old"),
        ("seventeen", NEWER, "version.unreadable"),
        ("99999.1", NEWER, "version.unreadable"),
        (None, NEWER, "version.unreadable"),
        ({"a": 1}, NEWER, "version.unreadable"),
    ],
)
def test_version(version: object, scopes: tuple[str, ...], wanted: str) -> None:
    facts = Reach(FORGE, True, said({"version": version}))
    assert codes(judge_version(facts, scopes)) == [wanted]


@pytest.mark.parametrize("status", [401, 403])
def test_version_that_is_not_told(status: int) -> None:
    facts = Reach(FORGE, True, said({"message": "no"}, status))
    assert codes(judge_version(facts, NEWER)) == ["version.unknown"]


NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("url", "ca_file", "readable", "answer", "system", "wanted"),
    [
        (FORGE, None, True, Answer(expires=NOW + 90 * DAY), False, "tls.trusted"),
        (FORGE, None, True, Answer(expires=NOW + 20 * DAY), False, "tls.expires-soon"),
        (FORGE, None, True, Answer(trouble="tls", tls_code=10), False, "tls.expired"),
        (FORGE, None, True, Answer(trouble="tls", tls_code=9), False, "tls.not-yet"),
        (FORGE, None, True, Answer(trouble="tls", tls_code=62), False, "tls.other-host"),
        (FORGE, None, True, Answer(trouble="tls", tls_code=64), False, "tls.other-host"),
        (FORGE, None, True, Answer(trouble="tls", tls_code=18), True, "tls.self-signed"),
        (FORGE, None, True, Answer(trouble="tls", tls_code=20), False, "tls.unknown-authority"),
        (FORGE, None, True, Answer(trouble="tls", tls_code=19), True, "tls.system-authority"),
        (FORGE, Path("/ca"), True, Answer(trouble="tls", tls_code=20), True, "tls.other-authority"),
        (FORGE, None, True, Answer(trouble="tls"), False, "tls.fails"),
        (FORGE, Path("/ca"), False, Answer(), False, "tls.ca-file"),
        ("http://127.0.0.1", None, True, Answer(200), False, None),
    ],
)
def test_certificate(
    url: str, ca_file: Path | None, readable: bool, answer: Answer, system: bool, wanted: str | None
) -> None:
    facts = Certificate(url, ca_file, readable, answer, NOW, system)
    assert codes(judge_certificate(facts)) == ([wanted] if wanted else [])


@pytest.mark.parametrize(
    ("ahead", "wanted"),
    [(0, "clock.together"), (29, "clock.together"), (31, "clock.apart"), (-4000, "clock.apart")],
)
def test_clock(ahead: int, wanted: str) -> None:
    answer = Answer(200, {"date": formatdate(NOW, usegmt=True)}, clock=NOW + ahead)
    assert codes(judge_clock(answer)) == [wanted]


@pytest.mark.parametrize("date", ["", "soon", "Mon, 99 Nov 2026 99:99:99 GMT", "\x1b[31m"])
def test_clock_that_is_none(date: str) -> None:
    assert codes(judge_clock(Answer(200, {"date": date}))) == ["clock.unknown"]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (Answer(200), "limits.unseen"),
        (Answer(200, {"ratelimit-limit": "600", "ratelimit-remaining": "599"}), "limits.far"),
        (Answer(200, {"ratelimit-limit": "600", "ratelimit-remaining": "10"}), "limits.near"),
        (Answer(200, {"ratelimit-limit": "many", "ratelimit-remaining": "few"}), "limits.unseen"),
        (Answer(200, {"ratelimit-limit": "9" * 5000, "ratelimit-remaining": "1"}), "limits.unseen"),
        (
            Answer(
                200,
                {
                    "ratelimit-limit": "120",
                    "ratelimit-observed": "7000",
                    "ratelimit-remaining": "200",
                },
            ),
            "limits.near",
        ),
        (
            Answer(
                200,
                {
                    "ratelimit-limit": "120",
                    "ratelimit-observed": "6200",
                    "ratelimit-remaining": "1000",
                },
            ),
            "limits.far",
        ),
        (Answer(429, {"retry-after": "60"}), "limits.reached"),
    ],
)
def test_limits(answer: Answer, wanted: str) -> None:
    assert codes(judge_limits(answer)) == [wanted]


@pytest.mark.parametrize(
    ("environ", "url", "wanted"),
    [
        ({}, FORGE, ""),
        ({"https_proxy": "http://p:1"}, FORGE, "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, FORGE, "http://p:1"),
        ({"http_proxy": "http://p:1"}, FORGE, ""),
        ({"ALL_PROXY": "http://p:1"}, FORGE, "http://p:1"),
        ({"https_proxy": "http://p:1", "no_proxy": "example.org"}, FORGE, ""),
        ({"https_proxy": "http://p:1", "NO_PROXY": "a, .example.org"}, FORGE, ""),
        ({"https_proxy": "http://p:1", "no_proxy": "ample.org"}, FORGE, "http://p:1"),
        ({"https_proxy": "http://p:1", "no_proxy": "*"}, FORGE, ""),
        ({"http_proxy": "http://p:1"}, "http://127.0.0.1:8001", ""),
    ],
)
def test_proxy_for(environ: dict[str, str], url: str, wanted: str) -> None:
    assert proxy_for(url, environ) == wanted


SET = {"https_proxy": "http://user:hunter22@proxy:3128"}
LOCAL = {"no_proxy": "localhost,127.0.0.1"}
HERE, THERE = "http://127.0.0.1:8000/", "https://hub.example.org/"


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Proxies(FORGE, HERE, {}), ["proxy.none"]),
        (Proxies(FORGE, HERE, {"http_proxy": "", "https_proxy": ""}), ["proxy.none"]),
        (Proxies(FORGE, HERE, SET, SET["https_proxy"]), ["proxy.loopback", "proxy.used"]),
        (Proxies(FORGE, HERE, SET | LOCAL, SET["https_proxy"]), ["proxy.used"]),
        (Proxies(FORGE, HERE, SET | LOCAL, SET["https_proxy"], False), ["proxy.needed"]),
        (Proxies(FORGE, HERE, SET | LOCAL), ["proxy.passed-by"]),
        (Proxies(FORGE, THERE, SET | LOCAL), ["proxy.hub", "proxy.passed-by"]),
    ],
)
def test_proxies(facts: Proxies, wanted: list[str]) -> None:
    findings = judge_proxies(facts)
    assert codes(findings) == wanted
    assert "hunter22" not in str(findings)


REDIRECT = "https://hub.example.org/hub/oauth_callback"
WRONG_CODE = said({"error": "invalid_grant"}, 400)
SIGN_IN = Answer(302, {"location": f"{FORGE}/users/sign_in"})


def application(**facts: Any) -> Application:
    known: dict[str, Any] = {"client_id": "id", "has_secret": True, "redirect": REDIRECT}
    known |= {"scopes": NEWER, "token": WRONG_CODE, "authorize": SIGN_IN}
    return Application(**(known | facts))


UNSEEN = "oauth.redirect-unseen"


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({}, ["oauth.client", UNSEEN, "scopes.asked"]),
        ({"client_id": ""}, ["oauth.no-client", "scopes.asked"]),
        ({"token": None}, ["oauth.no-secret", UNSEEN, "scopes.asked"]),
        (
            {"token": said({"error": "invalid_client"}, 401)},
            ["oauth.client-refused", UNSEEN, "scopes.asked"],
        ),
        ({"token": Answer(502)}, ["oauth.token-odd", UNSEEN, "scopes.asked"]),
        ({"token": said({"error": {"a": 1}}, 400)}, ["oauth.token-odd", UNSEEN, "scopes.asked"]),
        (
            {"token": Answer(307, elsewhere="https://evil")},
            ["oauth.moved", UNSEEN, "scopes.asked"],
        ),
        ({"authorize": Answer(400)}, ["oauth.client", "oauth.other-redirect", "scopes.asked"]),
        ({"authorize": Answer(200)}, ["oauth.client", UNSEEN, "scopes.asked"]),
        ({"authorize": Answer(500)}, ["oauth.client", "oauth.authorize-odd", "scopes.asked"]),
        (
            {"authorize": Answer(302, {"location": f"{REDIRECT}?error=invalid_scope"})},
            ["oauth.client", "oauth.scopes-missing", "scopes.asked"],
        ),
        (
            {"listed": {"callback_url": f"https://a/b\n{REDIRECT}"}},
            ["oauth.client", "oauth.redirect", "scopes.asked"],
        ),
        (
            {"listed": {"callback_url": "https://a/b"}},
            ["oauth.client", "oauth.other-redirect", "scopes.asked"],
        ),
        (
            {"listed": {"callback_url": REDIRECT, "scopes": ["read_user", "read_api"]}},
            ["oauth.client", "oauth.redirect", "oauth.scopes-missing"],
        ),
        (
            {"scopes": ("read_user", "read_api")},
            ["oauth.client", UNSEEN, "scopes.not-asked"],
        ),
        ({"scopes": ("api",)}, ["oauth.client", UNSEEN, "scopes.wide"]),
        ({"offered": NEWER}, ["oauth.client", UNSEEN, "scopes.asked"]),
        ({"offered": ("api", "read_user")}, ["oauth.client", UNSEEN, "scopes.unknown"]),
    ],
)
def test_application(facts: dict[str, Any], wanted: list[str]) -> None:
    assert codes(judge_application(application(**facts))) == wanted


PROJECT = said({"id": 1})
ONLINE = {"id": 3, "online": True, "paused": False}
BUILT = {"name": "image_build", "status": "success", "tag_list": []}
COVERING = {"tag_name_pattern": "^[0-9a-f]{40}$", "minimum_access_level_for_push": None}


def one_project(**facts: Any) -> ProjectFacts:
    known: dict[str, Any] = {"path": "g/p", "image_job": "image_build", "project": PROJECT}
    known |= {"runners": said([ONLINE]), "jobs": said([BUILT]), "rules": said([COVERING])}
    return ProjectFacts(**(known | facts))


def job(**facts: Any) -> Answer:
    return said([{"name": "other"}, BUILT | facts])


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ({}, ["runner.online", "job.there", "tags.immutable"]),
        ({"project": said({"message": "404"}, 404)}, ["project.not-found"]),
        ({"project": Answer(200, body=b"<html>")}, ["project.not-found"]),
        ({"runners": said([])}, ["runner.none", "job.there", "tags.immutable"]),
        (
            {"runners": said([{"id": 3, "online": False}])},
            ["runner.offline", "job.there", "tags.immutable"],
        ),
        (
            {"runners": said([ONLINE | {"paused": True}])},
            ["runner.offline", "job.there", "tags.immutable"],
        ),
        (
            {"runners": said([{"id": 3, "online": True, "active": False}])},
            ["runner.offline", "job.there", "tags.immutable"],
        ),
        ({"runners": said({}, 403)}, ["runner.unseen", "job.there", "tags.immutable"]),
        (
            {"details": (said({"tag_list": ["gpu"], "run_untagged": False}),)},
            ["runner.other-tags", "job.there", "tags.immutable"],
        ),
        (
            {"details": (said({"tag_list": ["gpu"]}),), "jobs": job(tag_list=["cpu"])},
            ["runner.other-tags", "job.there", "tags.immutable"],
        ),
        (
            {"details": (said({"tag_list": ["gpu", "cpu"]}),), "jobs": job(tag_list=["cpu"])},
            ["runner.online", "job.there", "tags.immutable"],
        ),
        ({"jobs": said([])}, ["runner.online", "job.none", "tags.immutable"]),
        ({"jobs": said({}, 403)}, ["runner.online", "job.unseen", "tags.immutable"]),
        ({"jobs": job(status="failed")}, ["runner.online", "job.failed", "tags.immutable"]),
        (
            {"jobs": job(status="pending", queued_duration=3600)},
            ["runner.online", "job.waits", "tags.immutable"],
        ),
        (
            {"jobs": job(status="pending", queued_duration="long")},
            ["runner.online", "job.there", "tags.immutable"],
        ),
        ({"rules": said({}, 404)}, ["runner.online", "job.there", "tags.unseen"]),
        ({"rules": said([])}, ["runner.online", "job.there", "tags.open"]),
        (
            {"rules": said([{"tag_name_pattern": "^v.*"}, {"tag_name_pattern": "(((("}])},
            ["runner.online", "job.there", "tags.open"],
        ),
        (
            {"rules": said([COVERING | {"minimum_access_level_for_push": "maintainer"}])},
            ["runner.online", "job.there", "tags.protected"],
        ),
        (
            {"rules": said([COVERING | {"tag_name_pattern": "(a*)*" * 30}])},
            ["runner.online", "job.there", "tags.open"],
        ),
    ],
)
def test_project(facts: dict[str, Any], wanted: list[str]) -> None:
    assert codes(judge_project(one_project(**facts))) == wanted


def challenge(realm: str) -> Answer:
    header = f'Bearer realm="{realm}",service="container_registry"'
    return Answer(401, {"www-authenticate": header})


OURS = challenge(f"{FORGE}/jwt/auth")


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Registry(FORGE, ""), ["registry.off"]),
        (Registry(FORGE, "r:5050", Answer(trouble="tls")), ["registry.unreachable"]),
        (Registry(FORGE, "r:5050", Answer(200)), ["registry.open"]),
        (Registry(FORGE, "r:5050", Answer(404)), ["registry.none-there"]),
        (Registry(FORGE, "r:5050", Answer(401)), ["registry.none-there"]),
        (Registry(FORGE, "r", challenge("https://evil/jwt/auth")), ["registry.other-realm"]),
        (Registry(FORGE, "r", challenge(f"{FORGE}@evil/jwt/auth")), ["registry.other-realm"]),
        (
            Registry(FORGE, "r", challenge("http://gitlab.example.org/jwt/auth")),
            ["registry.other-realm"],
        ),
        (Registry(f"{FORGE}/gitlab", "r", OURS), ["registry.other-realm"]),
        (Registry(FORGE, "r", OURS, said({"token": "x"})), ["registry.realm", "registry.token"]),
        (Registry(FORGE, "r", OURS, Answer(403)), ["registry.realm", "registry.token-refused"]),
        (Registry(FORGE, "r", OURS, Answer(404)), ["registry.realm", "registry.no-tokens"]),
    ],
)
def test_registry(facts: Registry, wanted: list[str]) -> None:
    assert codes(judge_registry(facts)) == wanted


def test_registry_is_a_note_where_it_is_not_used() -> None:
    assert {one.level for one in eased(judge_registry(Registry(FORGE, "r", Answer(404))))} == {
        "note"
    }


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("", {}),
        ("Basic realm=x", {}),
        ("Bearer", {}),
        ("Bearer =,=,=", {}),
        ('bearer realm="a",service="b"', {"realm": "a", "service": "b"}),
        ("Bearer " + 'realm="' * 100_000, {"realm": "realm="}),
        ("Bearer " + "a" * 1_000_000, {}),
    ],
    ids=range(7),
)
def test_challenge(header: str, wanted: dict[str, str]) -> None:
    began = time.process_time()
    assert read_challenge(header) == wanted
    assert time.process_time() - began < 2


HUB = said({"version": "6.1.1"})
WELL = said({"status": "ok", "hub": {"reachable": True}, "forge": {"reachable": True}})
CAME = said({"scheme": "https", "host": "hub.example.org", "upgrade": ""})
ASKED = said({"scheme": "https", "host": "hub.example.org", "upgrade": "websocket"})
SPREAD = (0.1, 0.4, 0.7)
GOOD = ["hub.version", "service.answers", "hub.websockets", "hub.stream", "hub.stream-long"]


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Hub(THERE, HUB, WELL, CAME, ASKED, SPREAD), GOOD),
        (Hub(THERE, HUB, WELL, CAME, Answer(403), SPREAD), GOOD),
        (Hub(THERE, Answer(trouble="refused")), ["hub.unreachable"]),
        (Hub(THERE, Answer(trouble="tls")), ["hub.certificate"]),
        (Hub(THERE, Answer(200, body=b"<html>")), ["hub.no-hub"]),
        (Hub(THERE, said({"version": "4.1.6"}), WELL, CAME, ASKED, SPREAD), ["hub.old", *GOOD[1:]]),
        (Hub(THERE, said({"version": "7.0.0"}), WELL, CAME, ASKED, SPREAD), ["hub.new", *GOOD[1:]]),
        (Hub(THERE, HUB, Answer(404)), ["hub.version", "service.missing"]),
        (Hub(THERE, HUB, said({"status": "degraded"})), ["hub.version", "service.degraded"]),
        (Hub(THERE, HUB, WELL, Answer(404), ASKED, SPREAD), [*GOOD[:2], "hub.way-unknown", *GOOD[2:]]),
        (
            Hub(THERE, HUB, WELL, said({"scheme": "http", "host": "hub.example.org"}), ASKED, SPREAD),
            [*GOOD[:2], "hub.scheme-lost", *GOOD[2:]],
        ),
        (
            Hub(THERE, HUB, WELL, said({"scheme": "https", "host": "inside:8000"}), ASKED, SPREAD),
            [*GOOD[:2], "hub.host-lost", *GOOD[2:]],
        ),
        (Hub(THERE, HUB, WELL, CAME, CAME, SPREAD), [*GOOD[:2], "hub.websockets-lost", *GOOD[3:]]),
        (
            Hub(THERE, HUB, WELL, CAME, Answer(502), SPREAD),
            [*GOOD[:2], "hub.websockets-odd", *GOOD[3:]],
        ),
        (Hub(THERE, HUB, WELL, CAME, ASKED, (0.6, 0.6, 0.61)), [*GOOD[:3], "hub.stream-held"]),
        (Hub(THERE, HUB, WELL, CAME, ASKED, ()), [*GOOD[:3], "hub.stream-unseen"]),
        (Hub("http://hub.example.org", HUB, Answer(404)), ["hub.version", "hub.no-tls", "service.missing"]),
    ],
)  # fmt: skip
def test_hub(facts: Hub, wanted: list[str]) -> None:
    assert codes(judge_hub(facts)) == wanted


@pytest.mark.parametrize(
    ("hub", "forge", "wanted"),
    [
        (HERE, FORGE, "webhooks.unreachable"),
        (HERE, "http://127.0.0.1:8001", "webhooks.untried"),
        (THERE, FORGE, "webhooks.untried"),
    ],
)
def test_webhooks(hub: str, forge: str, wanted: str) -> None:
    for answers in (None, True, False):
        findings = judge_webhooks(hub, forge, service_answers=answers)
        assert [one.code for one in findings] == [wanted]


COMPLETE = {
    "named_servers": True, "spawn_limit": 0, "cleanup_servers": False, "slow_spawn": 0,
    "failure_limit": 0, "auth_state": True, "crypt_key": True, "hook": True, "launches": True,
    "service": True, "roles": True, "proxy_own": False, "subdomain_host": True, "people": None,
}  # fmt: skip


@pytest.mark.parametrize("key", list(COMPLETE)[:11])
def test_hub_config_that_lacks_something(key: str) -> None:
    facts: dict[str, Any] = COMPLETE | {key: not COMPLETE[key]}
    assert codes(judge_hub_config(facts, runtime="local")) == ["config.required", "origin.own"]


@pytest.mark.parametrize(
    ("facts", "runtime", "wanted"),
    [
        (COMPLETE, "docker", ["config.complete", "origin.own"]),
        (
            COMPLETE | {"proxy_own": True},
            "docker",
            ["config.complete", "config.own-proxy", "origin.own"],
        ),
        ({"error": "SyntaxError in line 3."}, "docker", ["config.fails"]),
        (
            COMPLETE | {"subdomain_host": False},
            "kubernetes",
            ["config.complete", "origin.shared"],
        ),
    ],
)
def test_hub_config(facts: dict[str, Any], runtime: str, wanted: list[str]) -> None:
    assert codes(judge_hub_config(facts, runtime=runtime)) == wanted


@pytest.mark.parametrize("runtime", ["docker", "kubernetes"])
@pytest.mark.parametrize("people", [None, 2, 200])
def test_one_host_for_several_people_in_containers_is_never_called_safe(
    runtime: str, people: int | None
) -> None:
    (finding,) = judge_origin(False, people, runtime)
    assert (finding.code, finding.level) == ("origin.shared", "problem")
    assert finding.sentence.startswith("This is not safe")


@pytest.mark.parametrize(
    ("people", "runtime", "unwalled", "wanted"),
    [
        (1, "docker", False, "origin.one-person"),
        (None, "local", False, "origin.local"),
        (None, "local", True, "origin.shared"),
    ],
)
def test_one_host(people: int | None, runtime: str, unwalled: bool, wanted: str) -> None:
    assert codes(judge_origin(False, people, runtime, unwalled=unwalled)) == [wanted]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\x1b[31mred\x1b[0m", "a red"),
        ("two\nlines\r\n", "two lines"),
        ("\x1b]0;title\x07x", "]0;title x"),
        ("right\u202eleft", "right left"),
        ("x" * 1000, "x" * 17 + "..."),
        (None, "None"),
    ],
)
def test_plain(text: object, wanted: str) -> None:
    assert plain(text, 20) == wanted


def test_secrets_are_blotted_out() -> None:
    told = [problem("a.b", "it said glpat-123456 and glpat", "send glpat-123456 again")]
    (clean,) = without(told, ["glpat-123456", "", "gl"])
    assert clean.sentence == "it said [hidden] and glpat"
    assert clean.advice == "send [hidden] again"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://A.b/x?y#z", "https://a.b/x"),
        ("https://me:secret@a.b:8443/x", "https://a.b:8443/x"),
        ("http://[::1]:80/", "http://[::1]:80/"),
        ("http://[bad", "an address that cannot be read"),
        ("http://a:99999999/", "an address that cannot be read"),
    ],
)
def test_shown(url: str, wanted: str) -> None:
    assert shown(url) == wanted


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://a.b", "https://A.b:443/x", True),
        ("https://a.b", "http://a.b", False),
        ("https://a.b", "https://a.b:8443", False),
        ("https://a.b", "https://a.b@evil/", False),
        ("https://a.b", "https://a.b.evil/", False),
        ("http://[bad", "https://a.b", False),
    ],
)
def test_origin(one: str, other: str, same: bool) -> None:
    assert (origin(one) == origin(other)) is same
