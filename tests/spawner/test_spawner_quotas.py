"""Quotas in a real hub: people who ask the hub itself are counted like those who ask the service."""

from __future__ import annotations

import json
from collections.abc import Callable

from spawner_real_hub import NAME, OTHER_NAME, OTHER_OPTIONS, RealHub, wait_until

RUNNING = json.dumps([{"people": ["*"], "running": 1}])
KEPT = json.dumps([{"people": ["ada"], "kept": 1}])


def said(hub: RealHub, server: str) -> str:
    record = hub.record("ada", server)
    return str(record["failure"]["message"]) if record.get("failure") else ""


def test_of_two_launches_for_one_place_one_gets_it(start_hub: Callable[..., RealHub]) -> None:
    hub = start_hub(quotas=RUNNING)
    token = hub.person("ada")
    hub.tell("hold-clone")
    assert hub.launch(token).status_code == 202
    assert hub.launch(token, server=OTHER_NAME, options=OTHER_OPTIONS).status_code == 202
    wait_until(lambda: hub.reached("clone"))
    wait_until(lambda: said(hub, NAME) or said(hub, OTHER_NAME))
    hub.untell("hold-clone")
    refused = NAME if said(hub, NAME) else OTHER_NAME
    runs = OTHER_NAME if refused == NAME else NAME
    assert said(hub, refused).startswith("You have 1 server running")
    assert hub.settled("ada", runs)["ready"]

    # A hub that was killed counts what runs.
    hub.kill()
    hub.start()
    options = {"options": OTHER_OPTIONS} if refused == OTHER_NAME else {}
    hub.launch(token, server=refused, **options)
    wait_until(lambda: said(hub, refused))
    assert not hub.is_ready("ada", refused)

    assert hub.cancel(token, server=runs) in (202, 204)
    wait_until(lambda: (hub.server("ada", runs) or {})["stopped"])
    hub.launch(token, server=refused, **options)
    assert hub.settled("ada", refused)["ready"], hub.record("ada", refused)


def test_what_is_kept_counts_until_it_is_deleted(start_hub: Callable[..., RealHub]) -> None:
    hub = start_hub(quotas=KEPT)
    token = hub.person("ada")
    hub.launch(token)
    assert hub.settled("ada")["ready"], hub.record("ada")
    hub.cancel(token)
    wait_until(lambda: (hub.server("ada") or {})["stopped"])
    hub.launch(token, server=OTHER_NAME, options=OTHER_OPTIONS)
    wait_until(lambda: said(hub, OTHER_NAME))
    assert said(hub, OTHER_NAME).startswith("You keep 1 server")
    # Its own work is no reason against itself.
    hub.launch(token)
    assert hub.settled("ada")["ready"]
    assert hub.cancel(token, remove=True) == 204
    hub.launch(token, server=OTHER_NAME, options=OTHER_OPTIONS)
    assert hub.settled("ada", OTHER_NAME)["ready"], hub.record("ada", OTHER_NAME)
