"""The pages of the verb ``elsewhere``: which clients use a server that is not the target.

The kernel is asked for the first page only: with many connections, each dump takes the kernel and us a while.
"""

from bisect import bisect_right
from collections.abc import Callable

from check_failover.control import ELSEWHERE_PAGE, MAX_ELSEWHERE, Message
from check_failover.model import Endpoint, Target


class Elsewhere:
    """``find`` returns a service's target and the clients of its other servers. Raises what ``find`` raises."""

    def __init__(self, find: Callable[[str], tuple[Target, list[Endpoint]]]) -> None:
        self._find = find
        self._found: dict[str, tuple[Target, list[str]]] = {}

    def page(self, name: str, after: str) -> Message:
        """The clients that follow ``after`` ("": from the first one)."""
        found = self._found.get(name) if after else None
        if found is None:
            target, clients = self._find(name)
            found = self._found[name] = target, sorted(map(str, clients))[: MAX_ELSEWHERE + 1]
        target, listed = found
        start, end = bisect_right(listed, after), min(len(listed), MAX_ELSEWHERE)
        page = listed[start : min(start + ELSEWHERE_PAGE, end)]
        last = start + ELSEWHERE_PAGE >= end
        if last:
            self._found.pop(name, None)
        return {"target": target, "clients": page, "after": "" if last else page[-1], "more": len(listed) > end}
