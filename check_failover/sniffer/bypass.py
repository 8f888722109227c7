"""Blindness that no interface shows: the NAT forwards a service's packets, and the capture sees none of them.

Causes: a wrong ``client_interface``, a second path for the clients, a port mirror without its source.
"""

from collections.abc import Mapping

MIN_FORWARDED = 50  # requests forwarded without one captured
AT_ONCE = 200  # services, at most, that one comparison is about


class Bypass:
    """``blind``: service -> reason, for the services whose packets bypass the capture."""

    def __init__(self) -> None:
        self.blind: dict[str, str] = {}
        self._captured: dict[str, int] = {}
        self._asked: dict[str, int] = {}  # the counter at the first comparison since the last frame
        self._turn = 0

    def suspects(self, captured: Mapping[str, int]) -> list[str]:
        """The services to ``compare`` now: those of which no frame was captured since the last call, in turns."""
        before, self._captured = self._captured, dict(captured)
        suspects = [name for name, frames in captured.items() if before.get(name, 0) == frames]
        for name in {*self.blind, *self._asked}.difference(suspects):
            self.blind.pop(name, None)
            self._asked.pop(name, None)
        self._turn = (self._turn + AT_ONCE) % len(suspects) if len(suspects) > AT_ONCE else 0
        return [*suspects[self._turn :], *suspects[: self._turn]][:AT_ONCE]

    def compare(self, name: str, asked: int, captured: int) -> None:
        """``asked``: the NAT's counter of packets that demand an answer; ``captured``: the frames captured so far."""
        if captured != self._captured.get(name):
            return
        forwarded = asked - self._asked.setdefault(name, asked)
        if forwarded < 0:
            self._asked[name] = asked
        elif forwarded >= MIN_FORWARDED:
            self.blind[name] = (
                f"the NAT forwarded {forwarded} requests and none was captured: is client_interface right?"
            )
