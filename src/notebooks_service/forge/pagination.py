"""GitLab's offset pagination: ``page`` and ``per_page`` in, ``X-…`` headers and ``Link`` out.

https://docs.gitlab.com/api/rest/#pagination
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Depends, Request, Response
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from notebooks_service.forge import errors

DEFAULT_PER_PAGE = 20
MAX_PER_PAGE = 100
MOST_PAGES = 10**9
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
        count = session.scalar(select(func.count()).select_from(query.order_by(None).subquery()))
        self.headers(count or 0)
        return session.scalars(query.offset(self.skip).limit(self.per_page)).unique().all()

    def some(self, found: Sequence[T]) -> Sequence[T]:
        """The page of what was read with ``skip`` and one more than ``per_page``; no totals.

        GitLab leaves the totals out as well where counting is slow, for example for commits.
        """
        self._headers(len(found) > self.per_page, None)
        return found[: self.per_page]

    def headers(self, total: int) -> None:
        self._headers(self.page * self.per_page < total, total)

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
        """An absolute address: python-gitlab follows it as it is."""
        base: str = self._request.app.state.config.url
        path = self._request.scope["raw_path"].decode("ascii", "replace")
        query = [
            (key, value)
            for key, value in parse_qsl(self._request.url.query, keep_blank_values=True)
            if key not in ("page", "per_page") and key not in SECRET_PARAMETERS
        ]
        query += [("page", str(page)), ("per_page", str(self.per_page))]
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
