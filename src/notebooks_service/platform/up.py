"""``notebooks up``: checks, prepares the data, starts every part, says where to go, and watches."""

from __future__ import annotations

import html
import os
import shlex
import shutil
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from notebooks_service import __version__
from notebooks_service.egress.proxy import for_servers
from notebooks_service.errors import PlatformFailed, SettingsInvalid
from notebooks_service.forge.administration import Administration
from notebooks_service.forge.config import store_options
from notebooks_service.platform import checks, container_registry, secrets
from notebooks_service.platform.directory import PARTS, DataDirectory, Person, RunningPlatform
from notebooks_service.platform.loopback import SUFFIX
from notebooks_service.platform.parts import EGRESS_PORT, INTERNAL_PORTS, REGISTRY_PORT, Platform
from notebooks_service.platform.processes import ProcessId
from notebooks_service.platform.proxy import install_proxy, is_installed, proxy_directory
from notebooks_service.platform.sample import build_sample
from notebooks_service.platform.secrets import Secrets
from notebooks_service.platform.signin import sign_in_url
from notebooks_service.platform.supervise import Stopped, Supervisor
from notebooks_service.settings import Settings, load_settings
from notebooks_service.spawner import memory
from notebooks_service.walls.wall import find
from notebooks_service.walls.ways import Choice

CLIENT_ID = "notebooks-hub"
RUNNER_TOKEN_FILE = "forge-runner-token"  # noqa: S105 - Administration.runner_token keeps it there


@dataclass(frozen=True)
class Options:
    """What the command line says. ``forge`` is the URL of an external GitLab; None: the embedded one."""

    repositories: Sequence[str] = ()
    port: int = 8000
    forge_port: int | None = None
    data: Path | None = None
    runtime: str | None = None
    forge: str | None = None
    browser: bool = True
    other_people: bool = False


def up(options: Options, say: Callable[[str], None]) -> None:
    """Run the platform until Ctrl-C or SIGTERM. Prints one line on stdout, ``Ready: <url>``.

    ``say`` gets the progress. Raises ``NotebooksError`` with a sentence if it cannot be started.
    """
    checks.check_system()
    settings = _settings(options)
    checks.check_runtime(settings.runtime)
    checks.check_git()
    checks.check_space(settings.data)
    directory = DataDirectory(settings.data)
    directory.make()
    with checks.lock(directory):
        directory.update(__version__)
        owner = directory.owner(settings.owner)
        wall = find(settings)
        settings = settings.model_copy(update={"owner": owner.username, "walls": wall.way})
        places = _Containers(settings, options.port) if settings.runtime == "docker" else None
        supervisor = Supervisor(
            run=directory.run,
            logs=directory.logs,
            cwd=directory.run,
            say=say,
            others=lambda: _at_home_in(directory.path),
        )
        try:
            with supervisor.supervising():
                supervisor.end_leftovers(PARTS)
                if places is not None:
                    places.doors.clear()
                _run(options, settings, directory, owner, supervisor, say, wall, places)
        except Stopped:
            return
        finally:
            memory.clear(directory.path)
            if places is not None and places.made:
                places.doors.end()


def _run(
    options: Options,
    settings: Settings,
    directory: DataDirectory,
    owner: Person,
    supervisor: Supervisor,
    say: Callable[[str], None],
    wall: Choice,
    places: _Containers | None,
) -> None:
    embedded = options.forge is None
    forge_port = _forge_port(options)
    checks.check_port(options.port, "--port")
    if embedded:
        checks.check_port(forge_port, "--forge-port")
    if places is None:
        say(wall.sentence)
    own_secrets = Secrets(directory.secrets)
    own_secrets.make()
    proxy_command: list[str] = []
    if places is not None:
        places.check(embedded)
    else:
        proxies = proxy_directory(directory.path)
        if not is_installed(proxies):
            say("Installing the proxy (once).")
        proxy_command = install_proxy(proxies)
    administration = None
    if embedded:
        administration = Administration(directory.path, store_options(settings))
        _prepare_forge(administration, options, settings, directory, owner, own_secrets, say)
    platform = Platform(
        settings=settings,
        directory=directory,
        ports=directory.ports(
            (*INTERNAL_PORTS, *(places.ports if places is not None else ())),
            (options.port, forge_port),
        ),
        port=options.port,
        forge_port=forge_port,
        embedded=embedded,
        proxy_command=tuple(proxy_command),
        runner_token_file=directory.secrets / RUNNER_TOKEN_FILE if embedded else None,
        doors=places.doors if places is not None else None,
    )
    if places is not None:
        places.make(platform, own_secrets)
    own = ProcessId.of(os.getpid())
    running = RunningPlatform(
        pid=own.pid,
        created=own.created,
        hub_url=settings.hub_url,
        hub_api_url=platform.hub_api_url,
        forge_url=settings.forge_url,
        embedded=embedded,
        subdomains=settings.subdomains,
    )
    directory.set_running(running)
    say(
        "Starting proxy, forge, service and hub."
        if embedded
        else "Starting proxy, service and hub."
    )
    parts = [platform.hub(), platform.service(), platform.proxy()]
    if places is not None:
        parts.append(platform.inside())
        if platform.egress_address:
            parts.append(platform.egress())
    if embedded:
        supervisor.start(*parts, platform.forge())
        # The forge writes the certificate that its registry believes.
        late = [platform.registry()] if places is not None else []
        supervisor.start(platform.runner(), *late)
    else:
        supervisor.start(*parts)
    url = settings.service_url
    if administration:
        url = sign_in_url(administration, running, owner.username)
        administration.close()
    print(f"Ready: {url}", flush=True)
    if embedded:
        command = f"{_program()} login --data {shlex.quote(str(directory.path))}"
        say(f"The link works once, for five minutes; another: {command}")
    say("Ctrl-C stops everything.")
    if options.browser and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        _open_browser(url, directory)
    supervisor.watch()


class _Containers:
    """What ``up`` does on the Docker engine before its parts start."""

    def __init__(self, settings: Settings, port: int) -> None:
        # Needs packages that the runtime `local` does without.
        from notebooks_service.platform import doors
        from notebooks_service.spawner.containers import Ours
        from notebooks_service.spawner.docker import instance

        self._settings = settings
        self._engine = doors.engine
        self.doors = doors.Doors(settings, Ours(instance(settings)), port)
        self.made = False
        self.ports = (REGISTRY_PORT, *((EGRESS_PORT,) if settings.allowed_egress else ()))

    def check(self, embedded: bool) -> None:
        """Raises ``PlatformFailed`` with the command to run for what is missing, ``SettingsInvalid``."""
        for_servers(self._settings)
        if embedded:
            container_registry.check_program()
        with self._engine() as client:
            self.doors.check_images(client, embedded=embedded)

    def make(self, platform: Platform, own: Secrets) -> None:
        self.made = True
        with self._engine() as client:
            self.doors.make_network(client)
            self.doors.make(
                client,
                token=own.read(secrets.PROXY_TOKEN),
                hub=platform.hub_address,
                service=platform.service_address,
                egress=platform.egress_address,
            )


def _settings(options: Options) -> Settings:
    overrides: dict[str, object] = {}
    if options.data is not None:
        overrides["data"] = options.data
    if options.runtime is not None:
        overrides["runtime"] = options.runtime
    if options.other_people:
        overrides["unwalled_people"] = True
    if options.forge is None:
        overrides["forge_url"] = f"http://127.0.0.1:{_forge_port(options)}"
        overrides["forge_client_id"] = CLIENT_ID
        return _with_hub(overrides, options.port)
    parts = urlsplit(options.forge)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise PlatformFailed(
            f"--forge {options.forge} is no address; give the base URL of a GitLab, such as https://gitlab.example.org."
        )
    if options.repositories:
        raise PlatformFailed(
            "Repositories can be imported into the embedded forge only; leave out --forge, or push them to that GitLab."
        )
    settings = _with_hub({**overrides, "forge_url": options.forge}, options.port)
    if not settings.forge_client_id or not settings.forge_client_secret.get_secret_value():
        raise SettingsInvalid(
            f"--forge needs the settings `forge_client_id` and `forge_client_secret` of an application registered there with the redirect URI {settings.hub_url}hub/oauth_callback."
        )
    return settings


def _with_hub(overrides: dict[str, object], port: int) -> Settings:
    """The settings, with the hub's address: one that others can be below, if servers have own hosts.

    They do in containers, unless the settings say no: there is more than one person.
    """
    named = f"http://notebooks{SUFFIX}:{port}/"
    found = load_settings(**overrides, hub_url=named)
    wanted = (
        found.subdomains if "subdomains" in found.model_fields_set else found.runtime != "local"
    )
    hub_url = named if wanted else f"http://127.0.0.1:{port}/"
    return load_settings(**overrides, hub_url=hub_url, subdomains=wanted)


def _forge_port(options: Options) -> int:
    return options.forge_port if options.forge_port is not None else options.port + 1


def _prepare_forge(
    administration: Administration,
    options: Options,
    settings: Settings,
    directory: DataDirectory,
    owner: Person,
    own_secrets: Secrets,
    say: Callable[[str], None],
) -> None:
    """The owner, the hub's registration, the runner's, and the projects that were asked for."""
    administration.ensure_owner(owner.username, owner.name, owner.email)
    administration.ensure_application(
        "Notebooks",
        f"{settings.hub_url}hub/oauth_callback",
        settings.forge_scopes,
        CLIENT_ID,
        own_secrets.read(secrets.CLIENT_SECRET),
        trusted=True,
    )
    administration.runner_token()
    sources: list[Path | str] = [*options.repositories]
    if not sources and directory.fresh:
        sources = [build_sample(directory.path / "sample")]
    for source in sources:
        result = administration.import_repository(source, None, "private", owner.username)
        say(result.sentence)
    if sources:
        directory.mark_imported()


def _at_home_in(data: Path) -> list[psutil.Process]:
    """Every process whose home is under ``data``: what runs in notebook servers and CI jobs.

    Those that an earlier, killed `up` left running are no descendants of ours. A process started
    by a person's code may leave its session and parents, but its first environment stays readable.
    """
    inside = f"{data}{os.sep}"
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("HOME", "").startswith(inside):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _open_browser(url: str, directory: DataDirectory) -> None:
    """Open ``url`` by way of a file that is ours alone: a browser's arguments are for all to see."""
    page = directory.run / "open.html"
    page.unlink(missing_ok=True)
    descriptor = os.open(page, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        address = html.escape(url)
        file.write(
            f'<!doctype html><meta charset="utf-8"><title>Notebooks</title><meta http-equiv="refresh" content="0; url={address}"><a href="{address}">Notebooks</a>\n'
        )
    webbrowser.open(page.as_uri())


def _program() -> str:
    """How this program was called, for a sentence that the person can paste."""
    called = Path(sys.argv[0])
    found = shutil.which(called.name)
    if found and called.name == "notebooks" and Path(found).resolve() == called.resolve():
        return "notebooks"
    return shlex.quote(str(called)) if called.name == "notebooks" else "notebooks"
