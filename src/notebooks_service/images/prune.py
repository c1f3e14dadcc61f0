"""Which images of a project nobody needs any more, and their removal; called by ``notebooks image prune``.

The decision is a pure function. Tags are removed, never a digest that a tag shares which stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from notebooks_service.domain import is_commit_sha
from notebooks_service.errors import InvalidRequest, NotebooksError, RegistryUnavailable
from notebooks_service.images.build import remove_tree
from notebooks_service.images.clean_checkout import git
from notebooks_service.images.container_build import Place
from notebooks_service.images.environment import RECORD_NAME
from notebooks_service.images.environments import EnvironmentStore
from notebooks_service.images.lock import try_lock

ENVIRONMENT = re.compile(r"env-([0-9a-f]{64})\Z")
MOST_TIPS = 500


@dataclass(frozen=True)
class InUse:
    """What servers run in, running or stopped: digests, and commits where no digest is known."""

    digests: frozenset[str] = frozenset()
    commits: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Unneeded:
    """A tag that can go, with what it pointed at when this was decided, and why."""

    tag: str
    digest: str
    why: str


def unneeded(
    tags: Mapping[str, str],
    reachable: Collection[str],
    in_use: InUse,
    wanted: Collection[str] = (),
) -> list[Unneeded]:
    """Which of ``tags`` (name to digest) can go.

    ``reachable``: commits that a branch or tag reaches. ``wanted``: fingerprints of environments
    that stay whoever has them. A tag that is neither a commit nor an environment is not ours.
    """
    kept = {
        digest
        for name, digest in tags.items()
        if is_commit_sha(name)
        and (name in reachable or name in in_use.commits or digest in in_use.digests)
    }
    found = []
    for name, digest in sorted(tags.items()):
        environment = ENVIRONMENT.match(name)
        if is_commit_sha(name):
            used = name in in_use.commits or digest in in_use.digests
            if name not in reachable and not used:
                found.append(Unneeded(name, digest, "no branch or tag reaches this commit"))
        elif environment and digest not in kept | in_use.digests and environment[1] not in wanted:
            found.append(Unneeded(name, digest, "no commit that stays has this environment"))
    return found


@dataclass(frozen=True)
class History:
    """The commits that branches and tags reach, and those that these point at."""

    reachable: frozenset[str]
    tips: tuple[str, ...]


def history(repository: Path, remote: str | None) -> History:
    """What the branches and tags of ``remote`` reach now, or those of a bare repository itself.

    Raises ``InvalidRequest`` if this clone does not know all of it: a commit that is not known would
    count as not reached.
    """
    if git(repository, "rev-parse", "--is-shallow-repository").strip() == "true":
        raise InvalidRequest(
            "This clone is shallow, so it cannot say which commits are reached; run "
            "`git fetch --unshallow` first."
        )
    if remote is None:
        said = git(repository, "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/tags")
        tips = said.split()
    else:
        said = git(repository, "ls-remote", "--heads", "--tags", "--", remote)
        tips = [line.split("\t")[0] for line in said.splitlines() if not line.endswith("^{}")]
    tips = sorted(set(tips))
    if not tips:
        raise InvalidRequest("There is no branch and no tag, so nothing is known to be needed.")
    heads: list[str] = []
    try:
        for part in _parts(tips):
            heads += git(repository, "rev-list", "--no-walk=unsorted", *part, "--").split()
    except NotebooksError:
        raise InvalidRequest(
            "This clone lacks branches or tags that the remote has; run `git fetch --tags` first."
        ) from None
    reached: set[str] = set()
    for part in _parts(tips):
        reached.update(git(repository, "rev-list", *part, "--").split())
    return History(frozenset(reached), tuple(dict.fromkeys(heads)))


def _parts(items: list[str], size: int = 500) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def fingerprints(tips: Iterable[str], name: Callable[[str], str]) -> frozenset[str]:
    """The environments of branches' and tags' own commits; one that has none is left out."""
    found = set()
    for sha in list(tips)[:MOST_TIPS]:
        try:
            found.add(name(sha))
        except RegistryUnavailable:
            raise  # not known is not none: what this one has must stay
        except NotebooksError:
            continue
    return frozenset(found)


def remove_from_registry(
    place: Place, going: Iterable[Unneeded], staying: Collection[str], say: Callable[[str], None]
) -> int:
    """Removes the tags; how many are gone. ``staying``: digests of tags that stay.

    A registry that cannot delete a tag alone is told the digest, if no tag of it stays.
    """
    gone = 0
    by_digest: dict[str, list[str]] = {}
    for one in going:
        if place.registry.head(place.repository, one.tag) != one.digest:
            say(f"{one.tag} has moved meanwhile, so it stays.")
            continue
        done = place.registry.delete_tag(place.repository, one.tag)
        if done is None:
            by_digest.setdefault(one.digest, []).append(one.tag)
        else:
            gone += done
    if not by_digest:
        return gone
    # Whoever tagged something meanwhile keeps it.
    known = {tag for tags in by_digest.values() for tag in tags}
    others = [tag for tag in place.registry.tags(place.repository) if tag not in known]
    needed = {*staying, *_digests_of(place, others)}
    for digest, tags in by_digest.items():
        if digest in needed:
            names = ", ".join(tags)
            say(f"{names}: this registry deletes whole images only, and other tags need this one.")
        elif place.registry.delete_digest(place.repository, digest):
            gone += len(tags)
        else:
            say(f"{', '.join(tags)}: this registry does not delete (its `storage.delete` is off).")
    return gone


def _digests_of(place: Place, tags: Iterable[str]) -> set[str]:
    """What the tags lead to: images, and those that a list for several platforms names."""
    found: set[str] = set()
    waiting = list(tags)
    while waiting:
        name = waiting.pop()
        digest = place.registry.head(place.repository, name)
        if digest is None or digest in found:
            continue
        found.add(digest)
        try:
            manifest = place.registry.manifest(place.repository, digest)
        except RegistryUnavailable as error:
            if error.detail.get("reason") != "media type":
                raise
            continue  # no image, so no list of them
        waiting += manifest.images if manifest is not None else []
    return found


def remove_from_store(store: EnvironmentStore, project_id: int, going: Iterable[Unneeded]) -> int:
    """Removes commits' tags and environments of a local store; how many are gone."""
    gone = 0
    for one in going:
        environment = ENVIRONMENT.match(one.tag)
        if environment is None:
            gone += store.untag(project_id, one.tag)
        else:
            gone += _remove_environment(store, project_id, environment[1])
    return gone


def _remove_environment(store: EnvironmentStore, project_id: int, fingerprint: str) -> bool:
    directory = store.root / str(project_id) / fingerprint
    descriptor = try_lock(store.root / str(project_id) / ".locks" / fingerprint)
    if descriptor is None:
        return False  # it is being built
    try:
        if store.get(project_id, fingerprint) is None:
            return False
        # Without its record it is not whole, so nobody takes it; killed here, the next build sweeps.
        directory.chmod(0o700)
        (directory / RECORD_NAME).unlink()
        remove_tree(directory)
    finally:
        os.close(descriptor)
    return True
