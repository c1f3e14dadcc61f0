"""``notebooks …``: the commands. Each loads what it needs when it is called, so all start quickly.

Errors are one sentence on stderr and exit code 1 (2 for a wrong command line); ``--debug`` shows the
whole traceback.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from notebooks_service.cli_backup import add_backup_commands
from notebooks_service.cli_image import add_image_commands
from notebooks_service.cli_keys import add_keys_commands
from notebooks_service.cli_prune import add_prune_command
from notebooks_service.cli_usage import add_usage_command
from notebooks_service.errors import NoSpace, NotebooksError, PlatformFailed

if TYPE_CHECKING:
    from notebooks_service.forge.administration import Administration
    from notebooks_service.platform.directory import DataDirectory, RunningPlatform

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parsed = _parser().parse_args(arguments)
    command: Command = parsed.command
    try:
        return command(parsed)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except (NotebooksError, OSError) as error:
        if parsed.debug:
            raise
        _say(_sentence(error))
        return 1
    except Exception as error:
        if parsed.debug:
            raise
        _say(f"Something unexpected went wrong ({type(error).__name__}); --debug shows where.")
        return 1


def _sentence(error: NotebooksError | OSError) -> str:
    if isinstance(error, NotebooksError):
        return error.message
    if error.errno == errno.ENOSPC:
        return NoSpace.message
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}."


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _print_facts(parsed: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    """The facts as JSON if asked for, otherwise ``text``."""
    print(json.dumps(facts) if parsed.json else text, flush=True)


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="data directory (NOTEBOOKS_DATA; else ~/.local/share/notebooks-service)",
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    facts = argparse.ArgumentParser(add_help=False)
    facts.add_argument("--json", action="store_true", help="print facts as JSON")

    parser = argparse.ArgumentParser(
        prog="notebooks",
        description="An interactive environment for every commit of a GitLab project.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        parent: Any, name: str, command: Command, summary: str, *, json: bool = True
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = parent.add_parser(
            name,
            parents=[common, facts] if json else [common],
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
        )
        made.set_defaults(command=command, json=False)
        return made

    up = add(commands, "up", _up, "start everything on this machine", json=False)
    up.add_argument(
        "repositories",
        nargs="*",
        metavar="REPOSITORY",
        help="git repositories to import, or to fetch from again; none on new data: a sample project",
    )
    up.add_argument("--port", type=_port, default=8000, help="public port (default: 8000)")
    up.add_argument(
        "--forge-port", type=_port, help="port of the embedded forge (default: the public port + 1)"
    )
    up.add_argument(
        "--runtime", choices=["local", "docker", "kubernetes"], help="where servers run"
    )
    up.add_argument(
        "--forge",
        metavar="URL",
        help="use this GitLab instead of the embedded forge (needs forge_client_id and forge_client_secret)",
    )
    up.add_argument("--no-browser", action="store_true", help="do not open a browser")
    up.add_argument(
        "--allow-other-people",
        action="store_true",
        help="let others than the owner start servers, although nothing walls them off from each other",
    )

    doctor = add(
        commands,
        "doctor",
        _doctor,
        "say what is wrong with this installation, or with a GitLab to be connected",
    )
    doctor.add_argument("--forge", metavar="URL", type=_address, help="look at this GitLab")
    doctor.add_argument("--hub", metavar="URL", type=_address, help="look at this hub")
    doctor.add_argument(
        "--hub-config",
        type=Path,
        metavar="FILE",
        help="look at this jupyterhub_config.py; it is run, as JupyterHub runs it",
    )
    doctor.add_argument(
        "--project", metavar="GROUP/PROJECT", help="look at this project's CI and registry"
    )
    doctor.add_argument(
        "--port", type=_port, default=8000, help="public port that `up` would take (default: 8000)"
    )
    given = doctor.add_mutually_exclusive_group()
    given.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with a token of the forge, to ask with",
    )
    given.add_argument(
        "--ask-token", action="store_true", help="ask for that token at the terminal"
    )

    login = add(
        commands, "login", _login, "print a link that signs a person in, once, in a browser"
    )
    login.add_argument("--user", metavar="NAME", help="who (default: the owner)")
    token = add(commands, "token", _token, "print a new hub token for scripts")
    token.add_argument("--user", metavar="NAME", help="whose (default: the owner's)")

    forge = commands.add_parser(
        "forge", help="administer the embedded forge", description="Administer the embedded forge."
    )
    forge_commands = forge.add_subparsers(metavar="COMMAND", required=True)
    imported = add(
        forge_commands, "import", _forge_import, "import a repository, or fetch what is new in it"
    )
    imported.add_argument("source", metavar="SOURCE", help="a directory or an http(s) address")
    imported.add_argument("--as", dest="path", metavar="GROUP/PROJECT", help="the project's path")
    imported.add_argument(
        "--visibility", choices=["private", "internal", "public"], default="private"
    )
    user = forge_commands.add_parser("user", help="people", description="People of the forge.")
    added = add(
        user.add_subparsers(metavar="COMMAND", required=True),
        "add",
        _forge_user_add,
        "add a person and print the password made for them, once",
    )
    added.add_argument("name", metavar="NAME")
    added.add_argument("--full-name", metavar="NAME")
    added.add_argument("--email", metavar="ADDRESS")
    add(
        forge_commands,
        "rotate-keys",
        _forge_rotate_keys,
        "make new signing keys; the ones before them are still believed",
    )
    member = forge_commands.add_parser(
        "member", help="members", description="Members of projects and groups."
    )
    joined = add(
        member.add_subparsers(metavar="COMMAND", required=True),
        "add",
        _forge_member_add,
        "give a person a level in a project or group",
    )
    joined.add_argument("project", metavar="PROJECT", help="full path of a project or group")
    joined.add_argument("user", metavar="USER")
    joined.add_argument(
        "level",
        metavar="LEVEL",
        choices=["guest", "reporter", "developer", "maintainer", "owner"],
        help="guest, reporter, developer, maintainer or owner",
    )

    add_image_commands(commands, add)
    add_backup_commands(commands, add)
    add_keys_commands(commands, add)
    add_prune_command(commands, add)
    add_usage_command(commands, add)
    add(commands, "version", _version, "print the version")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65534:
        raise argparse.ArgumentTypeError(f"{text} is no port; take a number from 1 to 65534")
    return int(text)


def _address(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise argparse.ArgumentTypeError(
            "that is no address; give one such as https://gitlab.example.org"
        )
    if parts.username is not None or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(
            "give the address alone, without user name, password or query"
        )
    return text.rstrip("/")


def _up(parsed: argparse.Namespace) -> int:
    from notebooks_service.platform.up import Options, up

    options = Options(
        repositories=parsed.repositories,
        port=parsed.port,
        forge_port=parsed.forge_port,
        data=parsed.data,
        runtime=parsed.runtime,
        forge=parsed.forge,
        browser=not parsed.no_browser,
        other_people=parsed.allow_other_people,
    )
    up(options, _say)
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    import asyncio

    from notebooks_service.doctor.examine import Asked, examine
    from notebooks_service.doctor.report import as_facts, as_text

    try:
        token = _doctor_token(parsed)
    except (OSError, ValueError) as error:
        _say(str(error) if isinstance(error, ValueError) else _sentence(error))
        return 2
    asked = Asked(
        forge=parsed.forge,
        hub=parsed.hub,
        hub_config=parsed.hub_config.resolve() if parsed.hub_config else None,
        project=parsed.project,
        data=parsed.data,
        port=parsed.port,
        token=token,
        debug=parsed.debug,
    )
    done = asyncio.run(examine(asked))
    about = {"forge": done.forge_url, "hub": done.hub_url, "data": done.data}
    _print_facts(parsed, as_facts(done.findings, **about), as_text(done.findings))
    return done.exit_code


def _doctor_token(parsed: argparse.Namespace) -> str:
    """The token from file, terminal or environment; never from the command line, which all can read."""
    token: str
    if parsed.token_file is not None:
        token = parsed.token_file.read_text(encoding="utf-8", errors="replace")
    elif parsed.ask_token:
        if not sys.stdin.isatty():
            raise ValueError("--ask-token needs a terminal; give the token with --token-file.")
        import getpass

        token = getpass.getpass("Token: ")
    else:
        token = os.environ.get("NOTEBOOKS_DOCTOR_TOKEN", "")
    token = token.strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("That is no token: a token is one word.")
    return token


def _login(parsed: argparse.Namespace) -> int:
    from notebooks_service.platform.signin import SERVICE, sign_in_url

    directory, running = _running(parsed)
    name = _person(parsed, directory)
    if running.embedded:
        administration = _administration(directory)
        try:
            url = sign_in_url(administration, running, name)
        finally:
            administration.close()
    else:
        url = running.hub_url.rstrip("/") + SERVICE
    _print_facts(parsed, {"user": name, "url": url}, url)
    return 0


def _token(parsed: argparse.Namespace) -> int:
    from notebooks_service.platform.signin import hub_token

    directory, running = _running(parsed)
    name = _person(parsed, directory)
    token = hub_token(directory, running, name)
    facts = {"user": name, "token": token, "hub_api_url": f"{running.hub_url}hub/api"}
    _print_facts(parsed, facts, token)
    return 0


def _forge_import(parsed: argparse.Namespace) -> int:
    from dataclasses import asdict

    directory = _made_directory(parsed)
    administration = _administration(directory)
    try:
        result = administration.import_repository(
            parsed.source, parsed.path, parsed.visibility, directory.owner("").username
        )
    finally:
        administration.close()
    directory.mark_imported()
    _print_facts(parsed, asdict(result), result.sentence)
    return 0


def _forge_user_add(parsed: argparse.Namespace) -> int:
    administration = _administration(_made_directory(parsed))
    try:
        password = administration.add_user(parsed.name, parsed.full_name, parsed.email)
    finally:
        administration.close()
    _print_facts(parsed, {"user": parsed.name, "password": password}, password)
    return 0


def _forge_rotate_keys(parsed: argparse.Namespace) -> int:
    administration = _administration(_made_directory(parsed))
    try:
        administration.rotate_keys()
    finally:
        administration.close()
    words = "New keys sign from now on. A container registry has to be started again to know them."
    _print_facts(parsed, {"rotated": ["openid", "registry"]}, words)
    return 0


def _forge_member_add(parsed: argparse.Namespace) -> int:
    administration = _administration(_made_directory(parsed))
    try:
        administration.add_member(parsed.project, parsed.user, parsed.level)
    finally:
        administration.close()
    facts = {"project": parsed.project, "user": parsed.user, "level": parsed.level}
    _print_facts(parsed, facts, f"{parsed.user} is now {parsed.level} of {parsed.project}.")
    return 0


def _version(parsed: argparse.Namespace) -> int:
    from notebooks_service import __version__

    _print_facts(parsed, {"version": __version__}, __version__)
    return 0


def _directory(parsed: argparse.Namespace) -> DataDirectory:
    from notebooks_service.platform.directory import DataDirectory
    from notebooks_service.settings import load_settings

    settings = load_settings(**({"data": parsed.data} if parsed.data is not None else {}))
    return DataDirectory(settings.data)


def _made_directory(parsed: argparse.Namespace) -> DataDirectory:
    """The data directory of a platform that was started at least once."""
    directory = _directory(parsed)
    if not (directory.path / "owner.json").exists():
        raise PlatformFailed(
            f"There is nothing in {directory.path} yet; start `notebooks up` on it first, or name another with --data."
        )
    return directory


def _running(parsed: argparse.Namespace) -> tuple[DataDirectory, RunningPlatform]:
    directory = _made_directory(parsed)
    running = directory.running()
    if running is None:
        raise PlatformFailed(
            f"Nothing runs on {directory.path}; start `notebooks up` on it first, or name another with --data."
        )
    return directory, running


def _person(parsed: argparse.Namespace, directory: DataDirectory) -> str:
    return str(parsed.user or directory.owner("").username)


def _administration(directory: DataDirectory) -> Administration:
    from notebooks_service.forge.administration import Administration
    from notebooks_service.forge.config import store_options
    from notebooks_service.settings import load_settings

    return Administration(directory.path, store_options(load_settings(data=directory.path)))


if __name__ == "__main__":
    sys.exit(main())
