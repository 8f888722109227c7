"""Blindness that no interface shows: the NAT forwards a service's packets, and the capture sees none of them.

Causes: a wrong ``client_interface``, a second path for the clients, a port mirror without its source. Two threads use
a ``Bypass``; each one reads and writes whole values only.
"""

MIN_FORWARDED = 50  # requests forwarded without one captured


class Bypass:
    """``blind``: service -> reason, for the services whose packets bypass the capture."""

    def __init__(self) -> None:
        self.blind: dict[str, str] = {}
        self._before: dict[str, tuple[int, int]] = {}

    def compare(self, name: str, asked: int, seen: int) -> None:
        """Compare the NAT's counter of packets that demand an answer with the number of frames captured so far."""
        asked_before, seen_before = self._before.get(name, (asked, seen))
        forwarded, captured = asked - asked_before, seen - seen_before
        if captured > 0 or forwarded < 0:
            self.blind.pop(name, None)
        elif forwarded >= MIN_FORWARDED:
            self.blind[name] = (
                f"the NAT forwarded {forwarded} requests and none was captured: is client_interface right?"
            )
        if captured > 0 or forwarded < 0 or forwarded >= MIN_FORWARDED or name not in self._before:
            self._before[name] = (asked, seen)
