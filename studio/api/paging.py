"""Lists in pages: `limit` and `cursor` of every list, and the address of the next page in the header `Link`."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query, Request, Response

from pipelines.errors import RequestError

T = TypeVar("T")
USUAL = 100
"""Length of a page where only a cursor is given, and of lists of jobs where nothing is."""

MOST = 1000
"""Longest page."""


class Paging:
    """The part of a list that is asked for: all of it, unless there is a limit or a cursor.

    Args:
        request: that asks.
        response: gets `Link: <...>; rel="next"` where there is more.
        limit: most entries.
        cursor: where the page before ended, as its `Link` says.
    """

    def __init__(
        self,
        request: Request,
        response: Response,
        limit: Annotated[int | None, Query(ge=1, le=MOST, description="Most entries of a page.")] = None,
        cursor: Annotated[
            str | None, Query(max_length=1000, description="Where the page before ended, as its Link header says.")
        ] = None,
    ) -> None:
        self.limit = USUAL if limit is None and cursor is not None else limit
        self._request, self._response, self._cursor = request, response, cursor

    def take(self, listed: Sequence[T], key: Callable[[T], str]) -> Sequence[T]:
        """Return the part of a list that is asked for.

        A page begins behind the entry with which the page before ended, wherever that is now; if it is gone, where it
        was.

        Args:
            listed: the whole list.
            key: returns the id of an entry.

        Raises:
            RequestError: if the cursor is of no list of this kind.
        """
        begin = 0
        if self._cursor is not None:
            place, last = self._position(int, str)
            found = next((index for index, one in enumerate(listed) if key(one) == last), None)
            begin = place if found is None else found + 1
        end = len(listed) if self.limit is None else begin + self.limit
        if end < len(listed):
            self.more([end - 1, key(listed[end - 1])])
        return listed[begin:end]

    def before(self) -> int | None:
        """Return the number in the record before which a page of jobs begins; None for the newest.

        Raises:
            RequestError: if the cursor is of no list of jobs.
        """
        return None if self._cursor is None else self._position(int)[0]

    def more(self, position: Sequence[int | str]) -> None:
        """Say where the next page begins."""
        text = json.dumps(list(position), ensure_ascii=True, separators=(",", ":")).encode()
        cursor = base64.urlsafe_b64encode(text).decode().rstrip("=")
        asked = self._request.url.include_query_params(limit=self.limit, cursor=cursor)
        self._response.headers["link"] = f'<{asked.path}?{asked.query}>; rel="next"'

    def _position(self, *kinds: type) -> list[Any]:
        """Return what the cursor holds, checked for its kinds."""
        try:
            text = base64.urlsafe_b64decode(str(self._cursor) + "=" * (-len(str(self._cursor)) % 4))
            found: Any = json.loads(text)
        except (binascii.Error, ValueError, RecursionError):
            found = None
        right = isinstance(found, list) and [type(one) for one in found] == list(kinds)
        if not right or not 0 <= found[0] < 2**63:
            raise RequestError(
                f"The cursor {self._cursor!r:.60} is none of this list.",
                "Take it from the header Link of the page before, or leave it out.",
            )
        return found
