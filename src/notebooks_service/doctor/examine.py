"""One examination: what to look at, the gathering of facts, the findings in their order.

Called by ``notebooks doctor``. The network, the clock's reading and the environment come in as
arguments; nothing is written but temporary files.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from notebooks_service.doctor import (
    application,
    certificate,
    containers,
    data,
    hub,
    hub_config,
    machine,
    parts,
    project,
    reach,
    registry,
    traffic,
    version,
)
from notebooks_service.doctor.asking import NO_ANSWER, Requester, is_address, origin, trusting
from notebooks_service.doctor.findings import Finding, eased, ok, problem, unchecked, without
from notebooks_service.errors import NotebooksError, PlatformFailed, SettingsInvalid
from notebooks_service.high_water import Gauge, Marks
from notebooks_service.platform import secrets
from notebooks_service.platform.directory import DataDirectory, RunningPlatform
from notebooks_service.platform.secrets import Secrets
from notebooks_service.platform.up import CLIENT_ID
from notebooks_service.settings import Settings, load_settings

Transport = Callable[[], httpx.AsyncBaseTransport | None]
AREAS = ("data", "machine", "hub", "forge")


@dataclass(frozen=True)
class Asked:
    """What the command line says. ``token`` is the doctor's own, for asking the forge as a person;
    ``debug``: mistakes of the doctor itself are raised."""

    forge: str | None = None
    hub: str | None = None
    hub_config: Path | None = None
    project: str | None = None
    data: Path | None = None
    port: int = 8000
    token: str = ""
    debug: bool = False


@dataclass(frozen=True)
class Patient:
    """What is examined: decided once, from the command line, the settings and what runs."""

    settings: Settings
    forge_url: str | None
    hub_url: str | None
    client_id: str
    client_secret: str
    running: RunningPlatform | None
    embedded: bool
    asked: Asked = field(default_factory=Asked)


@dataclass(frozen=True)
class Examination:
    findings: list[Finding]
    forge_url: str | None = None
    hub_url: str | None = None
    data: str | None = None

    @property
    def exit_code(self) -> int:
        return 1 if any(each.level == "problem" for each in self.findings) else 0


async def examine(
    asked: Asked, *, areas: Collection[str] = AREAS, transport: Transport = lambda: None
) -> Examination:
    """Look at ``areas`` as far as they can be looked at. Never raises for what it finds."""
    overrides = {"data": asked.data} if asked.data is not None else {}
    try:
        settings = load_settings(**overrides)
    except SettingsInvalid as error:
        wrong = problem(
            "settings.wrong",
            error.message,
            "Correct it: docs/settings.md says what each may be. Nothing else was looked at.",
        )
        return Examination(without([wrong], [asked.token]))
    patient = meet(asked, settings)
    findings = [ok("settings.read", "The settings can be read.")]
    wrong_addresses = _wrong_addresses(patient)
    if wrong_addresses:
        findings += wrong_addresses
        areas = set(areas) - {"hub", "forge"}
    looks: dict[str, Callable[[], Awaitable[list[Finding]]]] = {
        "data": lambda: _look_at_data(patient),
        "machine": lambda: _look_at_machine(patient),
        "hub": lambda: _ask_hub(patient, transport),
        "forge": lambda: _ask_forge(patient, transport),
    }
    wanted = [area for area in AREAS if area in areas]
    for found in await asyncio.gather(
        *(_careful(area, looks[area], asked.debug) for area in wanted)
    ):
        findings += found
    hidden = (asked.token, patient.client_secret, *_settings_secrets(settings))
    return Examination(
        without(findings, hidden), patient.forge_url, patient.hub_url, str(settings.data)
    )


def _wrong_addresses(patient: Patient) -> list[Finding]:
    addresses = {"forge_url": patient.forge_url, "hub_url": patient.hub_url}
    return [
        problem(
            "settings.no-address",
            f"The setting `{name}` is no address, so neither hub nor forge was looked at.",
            "Give a whole one, such as https://gitlab.example.org.",
        )
        for name, url in addresses.items()
        if url is not None and not is_address(url)
    ]


async def _careful(
    area: str, look: Callable[[], Awaitable[list[Finding]]], debug: bool
) -> list[Finding]:
    """A mistake of ours in one area must not hide what was found in the others."""
    try:
        return await look()
    except Exception as error:
        if debug:
            raise
        return [
            problem(
                "doctor.stumbled",
                f"The doctor made a mistake of its own while it looked at the {area} ({type(error).__name__}).",
                "Please report it, with what `--debug` shows.",
            )
        ]


def meet(asked: Asked, settings: Settings) -> Patient:
    """Which forge and hub it is about, and whether the client's secret may be sent there.

    ``--forge`` first, then what runs on the data directory, then ``forge_url`` if somebody set it.
    """
    directory = DataDirectory(settings.data)
    try:
        running = directory.running()
    except PlatformFailed:
        running = None
    is_set = "forge_url" in settings.model_fields_set
    forge_url = asked.forge or (
        running.forge_url if running else settings.forge_url if is_set else None
    )
    embedded = (
        running is not None
        and running.embedded
        and origin(running.forge_url) == origin(forge_url or "")
    )
    client_id = settings.forge_client_id
    client_secret = settings.forge_client_secret.get_secret_value()
    if embedded:
        client_id = CLIENT_ID
        try:
            client_secret = Secrets(directory.secrets).read(secrets.CLIENT_SECRET)
        except NotebooksError:
            client_secret = ""
    elif is_set and origin(settings.forge_url) != origin(forge_url or ""):
        # The secret is the one of another forge.
        client_id = client_secret = ""
    hub_is_set = "hub_url" in settings.model_fields_set
    hub_url = asked.hub or (
        running.hub_url if running else settings.hub_url if hub_is_set else None
    )
    return Patient(settings, forge_url, hub_url, client_id, client_secret, running, embedded, asked)


def _settings_secrets(settings: Settings) -> list[str]:
    return [
        settings.forge_client_secret.get_secret_value(),
        settings.lfs_store_secret.get_secret_value(),
    ]


async def _look_at_data(patient: Patient) -> list[Finding]:
    place = patient.settings.data
    findings = data.judge_data(await asyncio.to_thread(data.look_at_data, place))
    if patient.running:
        alive = parts.look_at_parts(
            place,
            embedded=patient.running.embedded,
            containers=patient.settings.runtime == "docker",
            egress=bool(patient.settings.allowed_egress),
        )
        findings += parts.judge_parts(alive, place / "logs")
    return findings


async def _look_at_machine(patient: Patient) -> list[Finding]:
    settings = patient.settings
    places = {"the data directory": settings.data, "environments": settings.data / "environments"}
    places["temporary files"] = Path(os.environ.get("TMPDIR", "/tmp"))  # noqa: S108
    spaces, programs, walls = await asyncio.gather(
        asyncio.to_thread(machine.look_at_space, places),
        asyncio.to_thread(machine.look_at_programs),
        machine.look_at_walls(settings),
    )
    findings = machine.judge_space(spaces)
    gauge = Gauge(Marks.of(settings))
    findings += machine.judge_room(await asyncio.to_thread(gauge.waits, settings.data))
    if patient.running is None and patient.asked.forge is None:
        port = patient.asked.port
        wanted = {port: "--port", port + 1: "--forge-port"}
        findings += machine.judge_ports(machine.look_at_ports(wanted))
    findings += machine.judge_programs(programs)
    findings += machine.judge_walls(
        walls, runtime=settings.runtime, unwalled=settings.unwalled_people
    )
    if settings.runtime == "docker":
        embedded = patient.embedded
        facts = await asyncio.to_thread(containers.look_at_engine, settings, embedded=embedded)
        findings += containers.judge_engine(facts)
    return findings + machine.judge_limits(machine.look_at_limits())


async def _ask_hub(patient: Patient, transport: Transport) -> list[Finding]:
    settings = patient.settings
    findings = []
    answers: bool | None = None
    if patient.hub_url is None:
        findings.append(
            unchecked(
                "hub.not-named",
                "No hub runs on this data, and none was named.",
                "Start `notebooks up`, or name a hub with --hub.",
            )
        )
    else:
        verify = ssl.create_default_context()  # as a browser of this machine would
        async with Requester(patient.hub_url, verify=verify, transport=transport()) as asking:
            facts = await hub.ask_hub(asking)
        findings += hub.judge_hub(facts)
        answers = facts.health.status == 200
    if patient.forge_url is not None:
        hub_url = patient.hub_url or settings.hub_url
        findings += hub.judge_webhooks(hub_url, patient.forge_url, service_answers=answers)
    if patient.asked.hub_config is not None:
        told = await hub_config.run_config(patient.asked.hub_config)
        findings += hub_config.judge_hub_config(
            told, runtime=settings.runtime, unwalled=settings.unwalled_people
        )
    elif patient.running is None:
        findings += hub_config.unread()
    else:
        # `notebooks up` has a configuration of ours, tested as it is: only this can differ.
        findings += hub_config.judge_origin(
            patient.running.subdomains, None, settings.runtime, unwalled=settings.unwalled_people
        )
    return findings


async def _ask_forge(patient: Patient, transport: Transport) -> list[Finding]:
    settings, url = patient.settings, patient.forge_url
    if url is None:
        return [
            unchecked(
                "forge.not-named",
                "No forge runs on this data, and none was named.",
                "Start `notebooks up`, or name a GitLab with --forge.",
            )
        ]
    verify = trusting(settings.forge_ca_file)
    if verify is None:
        unreadable = certificate.Certificate(
            url, settings.forge_ca_file, False, NO_ANSWER, time.time()
        )
        return certificate.judge_certificate(unreadable)

    def connect(
        address: str, *, token: str = "", direct: bool = False, system: bool = False
    ) -> Requester:
        trusted = ssl.create_default_context() if system else verify
        return Requester(
            address,
            verify=trusted,
            timeout=settings.forge_timeout,
            token=token,
            direct=direct,
            transport=transport(),
        )

    async with connect(url, token=patient.asked.token) as forge:
        facts = await reach.ask_reach(forge, with_token=bool(patient.asked.token))
        findings = await _connection(patient, facts, connect)
        findings += reach.judge_reach(facts)
        if facts.api.status == 429:
            findings += traffic.judge_limits(facts.api)
        if facts.api.trouble or facts.api.elsewhere or not facts.is_gitlab:
            return [
                *findings,
                unchecked(
                    "forge.not-asked",
                    "Version, application, runners and registry could not be looked at.",
                    "Ask again when the forge answers.",
                ),
            ]
        findings += version.judge_version(facts, settings.forge_scopes)
        findings += reach.judge_token(facts)
        findings += traffic.judge_clock(facts.api)
        findings += traffic.judge_limits(facts.api)
        told = await application.ask_application(
            forge,
            facts.discovery,
            client_id=patient.client_id,
            secret=patient.client_secret,
            redirect=f"{(patient.hub_url or settings.hub_url).rstrip('/')}/hub/oauth_callback",
            scopes=settings.forge_scopes,
        )
        findings += application.judge_application(told)
        return findings + await _ask_project(patient, forge, connect)


async def _connection(
    patient: Patient, facts: reach.Reach, connect: Callable[..., Requester]
) -> list[Finding]:
    """Certificate and proxies: what lies between here and the forge."""
    settings, url = patient.settings, facts.url
    system_trusts = False
    if facts.api.trouble == "tls":
        async with connect(url, system=True) as other:
            system_trusts = not (await other.get("/api/v4/version")).trouble
    seen = certificate.Certificate(
        url, settings.forge_ca_file, True, facts.api, time.time(), system_trusts
    )
    used, direct = traffic.proxy_for(url, os.environ), True
    if used:
        async with connect(url, direct=True) as other:
            direct = not (await other.get("/api/v4/version")).trouble
    hub_url = patient.hub_url or settings.hub_url
    between = traffic.Proxies(url, hub_url, os.environ, used, direct)
    return [*certificate.judge_certificate(seen), *traffic.judge_proxies(between)]


async def _ask_project(
    patient: Patient, forge: Requester, connect: Callable[..., Requester]
) -> list[Finding]:
    if not patient.asked.token or not patient.asked.project:
        return [
            unchecked(
                "project.not-named",
                "Runners, the image job, the registry and its tags are looked at for one project, and none was named, or no token given.",
                "Give --project GROUP/PROJECT and the token of a Maintainer there.",
            )
        ]
    facts = await project.ask_project(forge, patient.asked.project, patient.settings.image_job)
    findings = project.judge_project(facts)
    if not facts.found:
        return findings
    told = registry.judge_registry(await registry.ask_registry(forge, facts, connect))
    # `local` runs environments, not images of a registry.
    return findings + (eased(told) if patient.settings.runtime == "local" else told)
