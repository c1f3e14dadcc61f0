"""Looks at the Docker engine, where servers are containers: whether it answers, has our images, and what is
left on it that nobody needs. Called by ``examine.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from notebooks_service.doctor.findings import Finding, ok, plain, problem, warning
from notebooks_service.errors import PlatformFailed
from notebooks_service.settings import Settings

FEW = 5
OLDEST = (20, 10)
"""The engine that all of this was tried with."""


@dataclass(frozen=True)
class EngineFacts:
    """``problem``: why the engine does not answer. ``volumes``: of servers on the engine; ``kept``: those
    that some server's directory or the trash names; ``stopped``: containers of servers that do not run.
    """

    problem: str = ""
    version: str = ""
    missing: Collection[str] = ()
    volumes: Collection[str] = ()
    kept: Collection[str] = ()
    stopped: Mapping[str, str] = field(default_factory=dict)


def look_at_engine(settings: Settings, *, embedded: bool) -> EngineFacts:
    """Asks the engine; changes nothing there."""
    try:
        import docker.errors

        from notebooks_service.platform.doors import engine
        from notebooks_service.spawner.containers import Ours
        from notebooks_service.spawner.volumes import volume_of
    except ImportError as error:
        return EngineFacts(
            problem=f"The package {error.name} is not installed; install notebooks-service[docker]."
        )
    wanted = [settings.init_image, settings.default_image, settings.proxy_image]
    wanted += [settings.job_image] if embedded else []
    try:
        with engine(20) as client:
            missing = []
            for name in wanted:
                try:
                    client.images.get(name)
                except docker.errors.ImageNotFound:
                    missing.append(name)
            version = str(client.version()["Version"])
            known = settings.data / "docker" / "instance"
            if not settings.docker_instance and not known.exists():
                return EngineFacts(version=version, missing=missing)
            ours = Ours(settings.docker_instance or known.read_text().strip())
            volumes = [each.name for each in client.volumes.list(filters=ours.filters("volume"))]
            stopped = {
                each.name: each.status
                for each in client.containers.list(all=True, filters=ours.filters("server"))
                if each.status != "running"
            }
    except PlatformFailed as error:
        return EngineFacts(problem=error.message)
    except (docker.errors.DockerException, OSError) as error:
        return EngineFacts(problem=f"The Docker engine says: {type(error).__name__}.")
    places = [*settings.data.glob("servers/*/*"), *settings.data.glob("trash/*")]
    kept = [volume for place in places if (volume := volume_of(Path(place)))]
    return EngineFacts("", version, missing, volumes, kept, stopped)


def judge_engine(facts: EngineFacts) -> list[Finding]:
    """What that means."""
    if facts.problem:
        return [
            problem(
                "engine.away",
                plain(facts.problem, 400),
                "No server can be started or stopped until it answers; those that run may go on.",
            )
        ]
    findings = []
    numbers = tuple(int(part) for part in facts.version.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers < OLDEST:
        findings.append(
            warning(
                "engine.old",
                f"The Docker engine is {plain(facts.version)}; nothing older than 20.10 was tried.",
                "Update it.",
            )
        )
    else:
        findings.append(
            ok("engine.answers", f"The Docker engine answers ({plain(facts.version)}).")
        )
    if facts.missing:
        findings.append(
            problem(
                "engine.images",
                f"These images are not on this machine: {plain(', '.join(facts.missing))}.",
                "Make them with `deploy/docker/build --base debian`, or name others in the settings.",
            )
        )
    left = sorted(set(facts.volumes) - set(facts.kept))
    if left:
        findings.append(
            warning(
                "engine.volumes-left",
                f"{len(left)} volumes of servers are on the engine that no server and no trash of this data "
                f"names: {shown(left)}.",
                "They may hold work, of data that was removed or restored elsewhere. Look into them; then "
                "`notebooks prune --work` removes them, after asking.",
            )
        )
    gone = sorted(set(facts.kept) - set(facts.volumes))
    if gone:
        findings.append(
            problem(
                "engine.volumes-gone",
                f"{len(gone)} servers' work is not on the engine any more: {shown(gone)}.",
                "Bring it back from a backup (`notebooks restore`); until then these servers say so and do not start.",
            )
        )
    if facts.stopped:
        findings.append(
            warning(
                "engine.containers-left",
                f"{len(facts.stopped)} containers of servers have ended and are still there: "
                f"{shown(sorted(facts.stopped))}.",
                "The hub removes them when it looks at their servers the next time, at its start at the latest.",
            )
        )
    return findings


def shown(names: Collection[str]) -> str:
    """Some of them, and how many more there are."""
    some = list(names)[:FEW]
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return plain(", ".join(some)) + more
