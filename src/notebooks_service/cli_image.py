"""``notebooks image …`` and ``notebooks init``: their options and what they print; used by ``cli.py``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from notebooks_service.cli_asking import asker
from notebooks_service.errors import InvalidRequest

if TYPE_CHECKING:
    from notebooks_service.images.container_command import Wishes
    from notebooks_service.images.prune import Unneeded
    from notebooks_service.platform.directory import DataDirectory
    from notebooks_service.platform.local_images import LocalImages

Command = Callable[[argparse.Namespace], int]


class Add(Protocol):
    """Adds a command to its parent; ``cli.py`` gives every one the common options."""

    def __call__(
        self, parent: Any, name: str, command: Command, summary: str, *, json: bool = True
    ) -> argparse.ArgumentParser: ...


def add_image_commands(commands: Any, add: Add) -> Any:
    """``image`` and ``init``; gives the parent of ``image``'s own commands."""
    image = commands.add_parser("image", help="images", description="Images of commits.")
    parent = image.add_subparsers(metavar="COMMAND", required=True)

    build = add(parent, "build", _build, "make a commit's image, or find it built", json=False)
    _where(build)
    _what(build)
    build.add_argument(
        "--builder", choices=["auto", "docker", "buildah"], default="auto", help="what builds"
    )
    explain = add(parent, "explain", _explain, "say what a commit's environment is made of")
    _what(explain)
    explain.add_argument(
        "--runtime", choices=["local", "docker", "kubernetes"],
        help="for which runtime (default: the setting)",
    )  # fmt: skip
    tag = add(parent, "tag", _tag, "tag a commit whose environment is built already")
    _where(tag)
    _what(tag)
    listing = add(parent, "list", _list, "list the images of a project")
    _where(listing)
    listing.add_argument(
        "--project", metavar="GROUP/PROJECT", help="a project of the embedded forge"
    )
    prune = add(parent, "prune", _prune, "remove images that nobody needs any more")
    _where(prune)
    _what(prune)
    prune.add_argument(
        "--remote", default="origin", help="the clone's remote that says which branches there are"
    )
    prune.add_argument("--hub", metavar="URL", help="ask this hub which images servers run in")
    prune.add_argument(
        "--project",
        metavar="GROUP/PROJECT",
        help="a project of the embedded forge; with --image, the project that --hub is asked about",
    )
    prune.add_argument("--yes", action="store_true", help="do not ask before removing")

    init = add(
        commands, "init", _init, "put a CI file, a Dockerfile and requirements into a repository"
    )
    init.add_argument(
        "directory", nargs="?", type=Path, default=Path(), metavar="DIR",
        help="the repository's top directory (default: here)",
    )  # fmt: skip
    init.add_argument("--yes", action="store_true", help="overwrite without asking")
    return parent


def _where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image", default="", metavar="HOST/PATH",
        help="where the project's images are (default: CI_REGISTRY_IMAGE)",
    )  # fmt: skip
    parser.add_argument(
        "--forge", default="", metavar="URL",
        help="the GitLab that checks the registry's logins (default: CI_SERVER_URL)",
    )  # fmt: skip


def _what(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkout",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="the repository (default: here)",
    )
    parser.add_argument(
        "--commit", default="", metavar="REF", help="the commit (default: CI_COMMIT_SHA, else HEAD)"
    )
    parser.add_argument("--dockerfile", metavar="PATH", help="in the repository")
    parser.add_argument("--context", metavar="PATH", help="in the repository")
    parser.add_argument("--target", default="", metavar="STAGE", help="the stage to build")
    parser.add_argument(
        "--build-arg", action="append", default=[], metavar="NAME=VALUE", help="a build argument"
    )


def _wishes(parsed: argparse.Namespace) -> Wishes:
    from notebooks_service.images.container_command import Wishes

    given = vars(parsed)
    arguments = {}
    for word in given.get("build_arg", []):
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise InvalidRequest("--build-arg wants NAME=VALUE.")
        arguments[key] = value
    return Wishes(
        checkout=given.get("checkout", Path()),
        commit=given.get("commit", ""),
        image=given.get("image", ""),
        forge=given.get("forge", ""),
        builder=given.get("builder", "auto"),
        dockerfile=given.get("dockerfile"),
        context=given.get("context"),
        target=given.get("target", ""),
        arguments=arguments,
    )


def _build(parsed: argparse.Namespace) -> int:
    # In a job of the embedded runner an image is an environment, unless a builder is named.
    local = os.environ.get("NOTEBOOKS_ENVIRONMENTS") and parsed.builder == "auto"
    if local and not parsed.image:
        from notebooks_service.images.command import build_from_ci

        return build_from_ci(os.environ, sys.stdout)
    from notebooks_service.images import container_command

    return container_command.build(_wishes(parsed), os.environ, sys.stdout)


def _explain(parsed: argparse.Namespace) -> int:
    from notebooks_service.images import container_command, explain
    from notebooks_service.settings import load_settings

    settings = load_settings(**({"data": parsed.data} if parsed.data is not None else {}))
    wishes = _wishes(parsed)
    sha = container_command.commit_of(wishes, os.environ)
    if (parsed.runtime or settings.runtime) == "local":
        options = explain.local_options(settings.data / "cache" / "uv", os.environ)
    else:
        environ = {
            "NOTEBOOKS_REBUILD_AFTER": str(settings.rebuild_after),
            "NOTEBOOKS_BASE_REGISTRIES": json.dumps(settings.base_registries),
            "NOTEBOOKS_BASE_IMAGE": settings.base_image,
            "NOTEBOOKS_IMAGE_JOB": settings.image_job,
            **os.environ,
        }
        options = container_command.options_of(wishes, environ, time.time())
    found = explain.explain(parsed.checkout, sha, options)
    _print(parsed, explain.as_facts(sha, found), explain.as_text(sha, found))
    return 0


def _tag(parsed: argparse.Namespace) -> int:
    from notebooks_service.images import container_command

    out = sys.stderr if parsed.json else sys.stdout
    facts = container_command.tag(_wishes(parsed), os.environ, out)
    _print(parsed, facts, f"{facts['image']} is {facts['digest']}.")
    return 0


def _list(parsed: argparse.Namespace) -> int:
    from notebooks_service.images import container_command

    wishes = _wishes(parsed)
    if _is_local(parsed, wishes):
        with _local_images(parsed) as images_here:
            where, tags = parsed.project, images_here.tags()
    else:
        place, _ = container_command.place_of(wishes, os.environ)
        where, tags = place.image, container_command.listed(place)
    images = container_command.by_image(tags)
    lines = [f"{digest}\n" + "".join(f"  {name}\n" for name in names) for digest, names in images]
    facts = {"image": where, "images": [{"digest": d, "tags": t} for d, t in images]}
    nothing = "There is no image, or none that you may see."
    _print(parsed, facts, "".join(lines).rstrip() or nothing)
    return 0


def _prune(parsed: argparse.Namespace) -> int:
    from notebooks_service.images import container_command, prune
    from notebooks_service.images.in_use import images_in_use
    from notebooks_service.images.prune import InUse

    wishes = _wishes(parsed)
    if _is_local(parsed, wishes):
        return _prune_here(parsed)
    place, _ = container_command.place_of(wishes, os.environ)
    in_use = InUse()
    if parsed.hub:
        token = os.environ.get("NOTEBOOKS_HUB_TOKEN", "")
        project = parsed.project or os.environ.get("CI_PROJECT_PATH", "") or place.repository
        if not token:
            raise InvalidRequest("--hub needs an administrator's token in NOTEBOOKS_HUB_TOKEN.")
        in_use = images_in_use(parsed.hub, token, project)
    going, tags = container_command.prunable(wishes, os.environ, place, in_use, parsed.remote)
    names = {one.tag for one in going}
    staying = {digest for name, digest in tags.items() if name not in names}
    if not parsed.hub:
        _say("No hub was asked (--hub), so images that servers run in may be among these.")
    return _carry_out(
        parsed,
        place.image,
        going,
        len(tags),
        lambda: prune.remove_from_registry(place, going, staying, _say),
    )


def _prune_here(parsed: argparse.Namespace) -> int:
    from notebooks_service.errors import PlatformFailed
    from notebooks_service.platform.local_images import in_use_here

    directory = _directory(parsed)
    running = directory.running()
    if running is None:
        raise PlatformFailed(
            f"Nothing runs on {directory.path}, so nobody says which environments servers use; start "
            "`notebooks up` on it first, or name another with --data."
        )
    with _local_images(parsed) as here:
        tags = here.tags()
        going = here.unneeded(tags, in_use_here(directory, running, here.people))
        return _carry_out(parsed, parsed.project, going, len(tags), lambda: here.remove(going))


def _is_local(parsed: argparse.Namespace, wishes: Wishes) -> bool:
    return bool(parsed.project) and not wishes.image and "CI_REGISTRY_IMAGE" not in os.environ


@contextmanager
def _local_images(parsed: argparse.Namespace) -> Iterator[LocalImages]:
    from notebooks_service.errors import PlatformFailed
    from notebooks_service.forge.administration import Administration
    from notebooks_service.platform.local_images import local_images

    directory = _directory(parsed)
    if not (directory.path / "owner.json").exists():
        raise PlatformFailed(
            f"There is nothing in {directory.path} yet; start `notebooks up` on it first, or name another with --data."
        )
    administration = Administration(directory.path)
    try:
        yield local_images(administration, parsed.project)
    finally:
        administration.close()


def _directory(parsed: argparse.Namespace) -> DataDirectory:
    from notebooks_service.platform.directory import DataDirectory
    from notebooks_service.settings import load_settings

    settings = load_settings(**({"data": parsed.data} if parsed.data is not None else {}))
    return DataDirectory(settings.data)


def _carry_out(
    parsed: argparse.Namespace,
    where: str,
    going: list[Unneeded],
    there: int,
    remove: Callable[[], int],
) -> int:
    """Prints what would go, asks, removes."""
    facts: dict[str, Any] = {
        "image": where,
        "unneeded": [{"tag": o.tag, "digest": o.digest, "why": o.why} for o in going],
        "kept": there - len(going),
        "removed": 0,
    }
    text = "".join(f"{one.tag}  {one.why}\n" for one in going)
    if not going:
        _print(parsed, facts, f"Nothing of {there} tags in {where} can go.")
        return 0
    if not parsed.json:
        print(f"{text}These {len(going)} of {there} tags in {where} can go.", flush=True)
    if not parsed.yes:
        ask = asker()
        if ask is None:
            _print(parsed, facts, "Nothing was removed: say --yes, or run this at a terminal.")
            return 1
        if not ask("Remove them?"):
            _print(parsed, facts, "Nothing was removed.")
            return 0
    facts["removed"] = remove()
    _print(parsed, facts, f"{facts['removed']} tags were removed.")
    return 0


def _init(parsed: argparse.Namespace) -> int:
    from notebooks_service.images.starting_files import init

    said = init(parsed.directory, ask=asker(), yes=parsed.yes)
    _print(parsed, {"files": said}, "\n".join(said))
    return 0


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _print(parsed: argparse.Namespace, facts: Mapping[str, Any], text: str) -> None:
    print(json.dumps(facts) if parsed.json else text, flush=True)
