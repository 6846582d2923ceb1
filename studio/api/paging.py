"""Lists in pages: `limit` and `cursor` of every list, and the address of the next page in the header `Link`."""

from __future__ import annotations

import base64
import binascii
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

from fastapi import Query, Request, Response

from pipelines.errors import RequestError

T = TypeVar("T")
Key: TypeAlias = tuple[float | str, ...]
"""Key that a list is sorted by: numbers, then a text."""

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

    def take(self, listed: Sequence[T], key: Callable[[T], Key]) -> Sequence[T]:
        """Return the part of a list that is asked for, in the order of a key.

        A page begins behind the key with which the page before ended, whether its entry is still there or not.

        Args:
            listed: the whole list.
            key: returns what an entry is sorted by, which no other entry has: numbers, then a text.

        Raises:
            RequestError: if the cursor is of no list of this kind.
        """
        ordered = sorted(listed, key=key)
        begin = 0
        if self._cursor is not None:
            last = self._position()
            if ordered and len(key(ordered[0])) != len(last):
                raise self._refused()
            begin = bisect_right(ordered, last, key=key)
        end = len(ordered) if self.limit is None else begin + self.limit
        if end < len(ordered):
            self.more(key(ordered[end - 1]))
        return ordered[begin:end]

    def before(self) -> int | None:
        """Return the number in the record before which a page of jobs begins; None for the newest.

        Raises:
            RequestError: if the cursor is of no list of jobs.
        """
        if self._cursor is None:
            return None
        found = self._read()
        if len(found) != 1 or type(found[0]) is not int or not 0 <= found[0] < 2**63:
            raise self._refused()
        return found[0]

    def more(self, position: Sequence[float | str]) -> None:
        """Say where the next page begins."""
        text = json.dumps(list(position), ensure_ascii=True, separators=(",", ":")).encode()
        cursor = base64.urlsafe_b64encode(text).decode().rstrip("=")
        asked = self._request.url.include_query_params(limit=self.limit, cursor=cursor)
        self._response.headers["link"] = f'<{asked.path}?{asked.query}>; rel="next"'

    def _position(self) -> Key:
        """Return the key that the cursor holds."""
        *numbers, text = self._read() or [None]
        plain = numbers and all(type(one) in (int, float) and math.isfinite(one) for one in numbers)
        if not plain or not isinstance(text, str):
            raise self._refused()
        return (*numbers, text)

    def _read(self) -> list[Any]:
        """Return what the cursor holds; nothing if it is none."""
        try:
            text = base64.urlsafe_b64decode(str(self._cursor) + "=" * (-len(str(self._cursor)) % 4))
            found: Any = json.loads(text)
        except (binascii.Error, ValueError, RecursionError):
            return []
        return found if isinstance(found, list) else []

    def _refused(self) -> RequestError:
        return RequestError(
            f"The cursor {self._cursor!r:.60} is none of this list.",
            "Take it from the header Link of the page before, or leave it out.",
        )
