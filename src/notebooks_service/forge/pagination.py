"""GitLab's offset pagination: ``page`` and ``per_page`` in, ``X-…`` headers and ``Link`` out.

https://docs.gitlab.com/api/rest/#pagination
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Depends, Request, Response
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from notebooks_service.forge import errors

DEFAULT_PER_PAGE = 20
MAX_PER_PAGE = 100
MOST_PAGES = 10**9
MOST_COUNTED = 10_000
"""Of more rows GitLab says no totals: https://docs.gitlab.com/api/rest/#pagination-response-headers"""
MOST_SKIPPED = 50_000
"""https://docs.gitlab.com/administration/instance_limits/#max-offset-allowed-by-the-rest-api-for-offset-based-pagination"""
NO_KEYSET = "Keyset pagination is not yet available for this type of request"
SECRET_PARAMETERS = frozenset({"private_token", "access_token", "job_token"})

T = TypeVar("T")


class Paging:
    """One request's page; writes the headers of the answer."""

    def __init__(self, page: int, per_page: int, request: Request, response: Response) -> None:
        self.page = page
        self.per_page = per_page
        self._request = request
        self._response = response

    @property
    def skip(self) -> int:
        return (self.page - 1) * self.per_page

    def items(self, every: Sequence[T]) -> Sequence[T]:
        """The page of a list that is in memory as a whole."""
        self.headers(len(every))
        return every[self.skip : self.skip + self.per_page]

    def rows(self, session: Session, query: Select[T]) -> Sequence[T]:
        """The page of a query."""
        bounded = query.order_by(None).limit(MOST_COUNTED + 1).subquery()
        count = session.scalar(select(func.count()).select_from(bounded)) or 0
        if count <= MOST_COUNTED:
            self.headers(count)
            return session.scalars(query.offset(self.skip).limit(self.per_page)).unique().all()
        return self.some(
            session.scalars(query.offset(self.skip).limit(self.per_page + 1)).unique().all()
        )

    def some(self, found: Sequence[T]) -> Sequence[T]:
        """The page of what was read with ``skip`` and one more than ``per_page``; no totals.

        GitLab leaves the totals out as well where counting is slow, for example for commits.
        """
        self._headers(len(found) > self.per_page, None)
        return found[: self.per_page]

    def headers(self, total: int) -> None:
        self._headers(self.page * self.per_page < total, total if total <= MOST_COUNTED else None)

    def keyset(self, orders: Collection[tuple[str, str]] | None = None) -> bool:
        """Whether the next page is asked for by its key (``pagination=keyset``).

        ``orders`` are the pairs of ``order_by`` and ``sort`` that can do so; None for any. Raises
        GitLab's 405. https://docs.gitlab.com/api/rest/#keyset-based-pagination
        """
        query = self._request.query_params
        if query.get("pagination") != "keyset":
            return False
        asked = (query.get("order_by", ""), query.get("sort", "desc"))
        if orders is not None and asked not in orders:
            raise errors.ForgeError(405, {"error": NO_KEYSET})
        return True

    def by_key(self, found: Sequence[T], key: Callable[[T], dict[str, str]]) -> Sequence[T]:
        """The page of what was read from a key on with one more than ``per_page``.

        ``key`` gives the parameters that lead on behind a row. There are no ``X-…`` headers, and no
        ``Link`` at the end.
        """
        page = found[: self.per_page]
        if len(found) > self.per_page:
            link = self._address({"per_page": str(self.per_page), **key(page[-1])})
            self._response.headers["Link"] = f'<{link}>; rel="next"'
        return page

    def _headers(self, more: bool, total: int | None) -> None:
        pages = None if total is None else max(-(-total // self.per_page), 1)
        headers = {
            "X-Page": str(self.page),
            "X-Per-Page": str(self.per_page),
            "X-Next-Page": str(self.page + 1) if more else "",
            "X-Prev-Page": str(self.page - 1) if self.page > 1 else "",
        }
        links = {"prev": self.page - 1 if self.page > 1 else None}
        links["next"] = self.page + 1 if more else None
        links["first"] = 1
        if total is not None and pages is not None:
            headers["X-Total"] = str(total)
            headers["X-Total-Pages"] = str(pages)
            links["last"] = pages
        headers["Link"] = ", ".join(
            f'<{self._link(page)}>; rel="{name}"' for name, page in links.items() if page
        )
        self._response.headers.update(headers)

    def _link(self, page: int) -> str:
        return self._address({"page": str(page), "per_page": str(self.per_page)})

    def _address(self, values: dict[str, str]) -> str:
        """An absolute address: python-gitlab follows it as it is."""
        base: str = self._request.app.state.config.url
        path = self._request.scope["raw_path"].decode("ascii", "replace")
        query = [
            (key, value)
            for key, value in parse_qsl(self._request.url.query, keep_blank_values=True)
            if key not in ("page", "per_page", *values) and key not in SECRET_PARAMETERS
        ]
        query += list(values.items())
        return f"{base}{path}?{urlencode(query, quote_via=quote)}"


def _paging(request: Request, response: Response) -> Paging:
    query = request.query_params
    try:
        page = int(query.get("page") or 1)
        per_page = int(query.get("per_page") or DEFAULT_PER_PAGE)
    except ValueError:
        raise errors.ForgeError(400, {"error": "page is invalid"}) from None
    return Paging(
        min(max(page, 1), MOST_PAGES), min(max(per_page, 1), MAX_PER_PAGE), request, response
    )


PagingDep = Annotated[Paging, Depends(_paging)]
