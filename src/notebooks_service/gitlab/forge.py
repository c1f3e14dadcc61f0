"""What we ask a forge, as one person sees it: access, refs, commits and files here; pipelines and jobs
in ``gitlab/ci.py``, which is ``forge.ci``; the registry in ``gitlab/registry.py``, ``forge.registry``.

Called by the spawner (in the hub), the gateway, the web service and ``images/watch.py``, always
through ``asyncio.to_thread`` or a thread of their own: it blocks. It speaks GitLab's HTTP API and
nothing else (https://docs.gitlab.com/api/rest/).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote

import requests

from notebooks_service.domain import (
    AccessLevel,
    Commit,
    ForgeUser,
    Project,
    Ref,
    is_commit_sha,
)
from notebooks_service.errors import NotFound
from notebooks_service.gitlab import answers, refs
from notebooks_service.gitlab.answers import Page, RegistryTag
from notebooks_service.gitlab.ci import Ci
from notebooks_service.gitlab.receive_pack import EMPTY_PACK, NO_SHA, refusal, request_body
from notebooks_service.gitlab.registry import Registry
from notebooks_service.gitlab.transport import PER_PAGE, Transport, quoted

__all__ = ["Forge", "Page", "RegistryTag"]

T = TypeVar("T")

MOST_TREE_PAGES = 20
MOST_LINKS = 8
LONGEST_LINK = 4096


class Forge:
    """One person's view of the forge, by their OAuth token. Thread-safe.

    Every method raises ``SignInExpired`` (401), ``NotFound`` (403 and 404: hidden and missing are
    the same answer) or ``ForgeUnavailable`` (429, 5xx, no network, no JSON; with
    ``detail["retry_after"]`` in seconds where the forge asks for a pause). No message holds the token.
    """

    def __init__(
        self,
        url: str,
        token: str,
        *,
        timeout: float = 20,
        ca_file: Path | None = None,
        session: requests.Session | None = None,
    ) -> None:
        """``timeout``: seconds of silence. ``session``: the transport, for tests."""
        self.url = url.rstrip("/")
        self._transport = Transport(
            self.url, token, timeout=timeout, ca_file=ca_file, session=session
        )
        self._me: Mapping[str, Any] | None = None
        self.ci = Ci(self._transport)
        self.registry = Registry(self._transport)

    def __enter__(self) -> Forge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def use(self, token: str) -> None:
        """Ask with a new token of the same person from now on."""
        self._transport.use(token)

    def close(self) -> None:
        """Closes the connections; the instance may be used again."""
        self._transport.close()

    # People and projects

    def _myself(self) -> Mapping[str, Any]:
        if self._me is None:
            self._me = answers.read(
                lambda data: {**data, "id": int(data["id"])}, self._transport.get("/user")
            )
        return self._me

    def user(self) -> ForgeUser:
        """Whose token this is; asked once per instance."""
        return answers.read(answers.user_from, self._myself())

    def project(self, path_or_id: str | int) -> Project:
        """The project, by id or full path. A renamed one answers with its present path."""
        return answers.read(answers.project_from, self._project(path_or_id))

    def _project(self, path_or_id: str | int) -> Any:
        if isinstance(path_or_id, int):
            return self._transport.get(f"/projects/{path_or_id}")
        # GitLab would take a name without a group for an id.
        if "/" not in path_or_id.strip("/"):
            raise NotFound
        return self._transport.get(f"/projects/{quoted(path_or_id)}")

    def projects(
        self, search: str = "", page: int = 1, per_page: int = 20, membership: bool = False
    ) -> Page[Project]:
        """Projects that this person may see, the last active first; ``membership``: only their own."""
        query: dict[str, Any] = {"order_by": "last_activity_at", "sort": "desc"}
        if search:
            query |= {"search": search, "search_namespaces": "true"}
        if membership:
            query["membership"] = "true"
        found = self._transport.page("/projects", page, per_page, query)
        return self._page(found, answers.project_from)

    def access(self, project: Project) -> AccessLevel:
        """The effective level: the highest of direct, group, inherited and shared membership.

        ``NONE`` for a project that is readable only because it is public or internal. Where the
        list of members is hidden, the project's own ``permissions`` say it; an administrator
        counts as an owner.
        """
        me = self._myself()
        try:
            member = self._transport.get(f"/projects/{project.id}/members/all/{me['id']}")
            level = answers.read(lambda data: int(data["access_level"]), member)
        except NotFound:
            level = answers.read(answers.permission_from, self._project(project.id))
        if me.get("is_admin") is True:
            return AccessLevel.OWNER
        return AccessLevel.from_number(level)

    # Refs, commits, files

    def commit(self, project: Project, ref: str) -> Commit:
        """The commit that ``ref`` names now; 40 hex digits are a commit, whatever else is called so.

        Raises ``NotFound`` also for people who may see the project but not its code.
        """
        for reading in refs.readings(ref):
            try:
                return self._commit(project, reading)
            except NotFound:
                continue
        raise NotFound

    def _commit(self, project: Project, reading: refs.Reading) -> Commit:
        name = quoted(reading.name)
        if reading.kind in ("branch", "tag"):
            kind = "branches" if reading.kind == "branch" else "tags"
            data = self._transport.get(f"/projects/{project.id}/repository/{kind}/{name}")
            return answers.read(lambda ref: answers.commit_from(ref["commit"]), data)
        data = self._transport.get(
            f"/projects/{project.id}/repository/commits/{name}", {"stats": "false"}
        )
        commit = answers.read(answers.commit_from, data)
        # GitLab resolves any revision here: a branch that is called like a sha is not that commit.
        if reading.kind != "revision" and not commit.sha.startswith(reading.name):
            raise NotFound
        return commit

    def commits(
        self, project: Project, ref: str, search: str = "", page: int = 1, per_page: int = 20
    ) -> Page[Commit]:
        """Commits reachable from ``ref``, newest first; ``search`` looks in messages, and for a sha.

        https://docs.gitlab.com/api/search/#scope-commits-2
        """
        if not refs.FULL_SHA.match(ref) and not refs.is_ref_name(ref):
            raise NotFound
        if not search.strip():
            found = self._transport.page(
                f"/projects/{project.id}/repository/commits", page, per_page, {"ref_name": ref}
            )
            return self._page(found, answers.commit_from)
        term = search.strip()
        found = self._transport.page(
            f"/projects/{project.id}/search",
            page,
            per_page,
            {"scope": "commits", "search": term, "ref": ref},
        )
        result = self._page(found, answers.commit_from)
        if page == 1 and (refs.FULL_SHA.match(term) or refs.SHORT_SHA.match(term)):
            named = self._by_sha(project, term)
            if named and named not in result.items:
                total = None if result.total is None else result.total + 1
                return Page((named, *result.items), result.page, result.next_page, total)
        return result

    def _by_sha(self, project: Project, text: str) -> Commit | None:
        kind: refs.Kind = "sha" if refs.FULL_SHA.match(text) else "short sha"
        try:
            return self._commit(project, refs.Reading(kind, text.lower()))
        except NotFound:
            return None

    def commit_refs(self, project: Project, sha: str) -> list[Ref]:
        """Branches and tags that contain the commit. GitLab gives their names only: ``sha`` is empty."""
        rows = self._transport.every(
            f"/projects/{project.id}/repository/commits/{quoted(sha)}/refs", {"type": "all"}
        )
        return [answers.read(lambda data: Ref(data["type"], data["name"], ""), row) for row in rows]

    def branch(self, project: Project, name: str) -> Ref:
        if not refs.is_ref_name(name):
            raise NotFound
        path = f"/projects/{project.id}/repository/branches/{quoted(name)}"
        return answers.read(answers.branch_from, self._transport.get(path))

    def branches(self, project: Project, search: str = "") -> list[Ref]:
        """All branches; ``search``: only those whose name contains it."""
        query = {"search": search} if search else {}
        rows = self._transport.every(f"/projects/{project.id}/repository/branches", query)
        return [answers.read(answers.branch_from, row) for row in rows]

    def tags(self, project: Project, search: str = "") -> list[Ref]:
        """All tags; ``search``: only those whose name contains it."""
        query = {"search": search} if search else {}
        rows = self._transport.every(f"/projects/{project.id}/repository/tags", query)
        return [answers.read(answers.tag_from, row) for row in rows]

    def create_branch(
        self, project: Project, name: str, sha: str, pack: bytes = EMPTY_PACK
    ) -> None:
        """Make a branch at a commit; ``pack`` brings what the project has not of it.

        ``NotFound`` where that is refused; ``detail["reason"]`` is what the forge says, untrusted.
        """
        self._push_ref(project, name, NO_SHA, sha, pack)

    def delete_branch(self, project: Project, name: str, sha: str) -> None:
        """Remove a branch that is at ``sha``. ``NotFound`` where that is refused."""
        self._push_ref(project, name, sha, NO_SHA)

    def _push_ref(
        self, project: Project, name: str, old: str, new: str, pack: bytes = EMPTY_PACK
    ) -> None:
        ref = f"refs/heads/{name}"
        answer = self._transport.push(quote(project.path), request_body(ref, old, new, pack))
        if (why := refusal(answer, ref)) is not None:
            raise NotFound(reason=why[:200])

    def path_kind(
        self, project: Project, sha: str, path: str
    ) -> Literal["file", "directory", "outside"] | None:
        """Whether ``path`` is a file or a directory of the commit, or nothing of it.

        ``outside``: a symbolic link out of the tree, or a path through a link or a file; what is
        there on the machine of a server is not what the commit means.
        """
        parts = [part for part in path.split("/") if part]
        if not parts:
            return "directory"
        if any(part in (".", "..") or "\0" in part for part in parts):
            return None
        for _ in range(MOST_LINKS):
            name = "/".join(parts)
            size = self._file_bytes(project, sha, name)
            if size is not None:
                target = self._link(project, sha, name) if size <= LONGEST_LINK else None
                if target is None:
                    return "file"
                landed = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
                if landed.startswith(("/", "../")) or landed == "..":
                    return "outside"
                parts = [] if landed == "." else landed.split("/")
                continue
            if not parts or self._is_directory(project, sha, name):
                return "directory"
            before = ("/".join(parts[:end]) for end in range(1, min(len(parts), MOST_LINKS)))
            through = any(self._file_bytes(project, sha, each) is not None for each in before)
            return "outside" if through else None
        return "outside"

    def _file_bytes(self, project: Project, sha: str, path: str) -> int | None:
        """The size of a file (0 where the forge does not tell), or None if it is none."""
        if not path:
            return None
        files = f"/projects/{project.id}/repository/files/{quoted(path)}"
        headers = self._transport.head(files, {"ref": sha})
        if headers is None:
            return None
        size = headers.get("X-Gitlab-Size", "")
        return int(size) if size.isdigit() else 0

    def _is_directory(self, project: Project, sha: str, path: str) -> bool:
        listing = f"/projects/{project.id}/repository/tree"
        try:
            return bool(self._transport.page(listing, 1, 1, {"path": path, "ref": sha}).items)
        except NotFound:
            return False

    def _link(self, project: Project, sha: str, path: str) -> str | None:
        """Where a symbolic link leads; None for any other file."""
        entry = self._tree_entry(project, sha, path)
        if entry is None or entry.get("mode") != "120000":
            return None
        target = self.file(project, sha, path, LONGEST_LINK)
        return (target or b"").decode("utf-8", "surrogateescape")

    def file(self, project: Project, sha: str, path: str, limit: int) -> bytes | None:
        """The first ``limit`` bytes of a file of the commit; None if it has none of that name.

        https://docs.gitlab.com/api/repository_files/#retrieve-a-raw-file-from-a-repository
        """
        raw = f"/projects/{project.id}/repository/files/{quoted(path)}/raw"
        try:
            return self._transport.beginning(raw, {"ref": sha}, limit)
        except NotFound:
            return None

    def listing(
        self,
        project: Project,
        sha: str,
        directory: str,
        most: int = 9_900,
        *,
        recursive: bool = False,
    ) -> list[dict[str, Any]]:
        """The rows of one directory (empty: the root) of a commit; none if there is no such directory.

        ``recursive``: of everything below it. Not many more rows than ``most`` are asked for.
        https://docs.gitlab.com/api/repositories/#list-all-repository-trees-in-a-project
        """
        query = {"path": directory, "ref": sha, "pagination": "keyset"}
        if recursive:
            query["recursive"] = "true"
        try:
            path = f"/projects/{project.id}/repository/tree"
            return self._transport.every(path, query, pages=most // PER_PAGE + 1)
        except NotFound:
            if directory:
                return []
            raise

    def blob(self, project: Project, blob: str, limit: int) -> bytes:
        """The first ``limit`` bytes of an object of the repository.

        https://docs.gitlab.com/api/repositories/#retrieve-raw-blob-content
        """
        path = f"/projects/{project.id}/repository/blobs/{quoted(blob)}/raw"
        return self._transport.beginning(path, {}, limit)

    def gitlink(self, project: Project, sha: str, path: str) -> str | None:
        """The commit that a submodule at ``path`` is pinned to; None if there is none."""
        entry = self._tree_entry(project, sha, path) or {}
        found = str(entry.get("id"))
        return found if entry.get("type") == "commit" and is_commit_sha(found) else None

    def _tree_entry(self, project: Project, sha: str, path: str) -> dict[str, Any] | None:
        """What the list of its directory says of ``path``; of very large ones only the beginning
        is looked at. https://docs.gitlab.com/api/repositories/#list-all-repository-trees-in-a-project
        """
        directory = path.rpartition("/")[0]
        listing = f"/projects/{project.id}/repository/tree"
        number = 1
        for _ in range(MOST_TREE_PAGES):
            try:
                rows = self._transport.page(listing, number, 100, {"path": directory, "ref": sha})
            except NotFound:
                return None
            for row in rows.items:
                if row.get("path") == path:
                    return row
            if rows.next_page is None:
                return None
            number = rows.next_page
        return None

    def repository_bytes(self, project: Project) -> int | None:
        """How large the repository is at the forge; None where it does not tell this person.

        https://docs.gitlab.com/api/projects/ (``statistics``, for Reporter and above)
        """
        data = self._transport.get(f"/projects/{project.id}", {"statistics": "true"})
        found = (data.get("statistics") or {}) if isinstance(data, dict) else {}
        size = found.get("repository_size")
        return size if isinstance(size, int) and not isinstance(size, bool) else None

    @staticmethod
    def _page(page: Page[dict[str, Any]], convert: Callable[[Mapping[str, Any]], T]) -> Page[T]:
        items = tuple(answers.read(convert, row) for row in page.items)
        return Page(items, page.page, page.next_page, page.total)
