"""Read the list of ipnat: rules in the kernel's order, NAT sessions and what they count. Pure.

The session table is what stage 1 can be read from without a sniffer: a dead server shows sessions with packets from
the client and none back. Sources: the lists that IPFilter 5.1.2 printed (tests/fixtures/ipfilter) and its printers.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from check_failover.model import Endpoint, Service
from check_failover.redirector.ipfilter.rules import Rule, parse


@dataclass(frozen=True, slots=True)
class Session:
    """One entry that an ``rdr`` rule made. Packets are counted only in a verbose list (``-v``)."""

    server: Endpoint
    address: Endpoint
    client: Endpoint
    protocol: str | None  # missing in the lists of older versions
    asked: int = 0  # packets from the client
    answered: int = 0  # packets from the server

    def of(self, service: Service) -> bool:
        """Whether it is a session of that service."""
        return self.address == service.address and self.protocol in (None, service.protocol)


@dataclass(frozen=True, slots=True)
class Listing:
    """What ``ipnat -l`` says."""

    rules: tuple[Rule, ...]
    sessions: tuple[Session, ...]


_RDR = re.compile(r"RDR(?: CLONE)?(?: ORPHAN)? (\S+)\s+(\d+)\s+<- -> (\S+)\s+(\d+)\s+\[(\S+) (\d+)\](?: (\S+))?.*")
_PACKETS = re.compile(r"\t.*\bpkts (\d+)/(\d+)\b", re.IGNORECASE)


def listing(text: str) -> Listing:
    """Read ``ipnat -l`` with any of -h, -v, -d, -R, of version 4 or 5; lines of no interest are passed over."""
    rules: list[Rule] = []
    sessions: list[Session] = []
    section, session = "", False
    for line in text.splitlines():
        if line.startswith("List of "):
            section = line
        elif not line or section == "":
            continue
        elif "filters" in section and not line[0].isspace():
            rules.append(parse(re.sub(r"^\d+ (?=[a-z])", "", line)))  # -h: new sessions
        elif "sessions" in section and not line[0].isspace():
            found = _session(line)
            session = found is not None
            sessions += [found] if found else []
        elif session and (counts := _PACKETS.match(line)):
            sessions[-1] = replace(sessions[-1], asked=int(counts[1]), answered=int(counts[2]))
    return Listing(tuple(rules), tuple(sessions))


def _session(line: str) -> Session | None:
    match = _RDR.fullmatch(line)
    if match is None:
        return None
    server, sport, address, port, client, cport, protocol = match.groups()
    return Session(Endpoint(server, int(sport)), Endpoint(address, int(port)), Endpoint(client, int(cport)), protocol)


class Meter:
    """Adds up what sessions count, so that the sum never falls when a session ends.

    What a session counted between the last look and its end is lost; a look each few seconds keeps that small.
    """

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], tuple[int, int]] = {}
        self.asked = 0
        self.answered = 0

    def look(self, sessions: Iterable[Session]) -> None:
        """Take in the service's sessions as they are now."""
        now: dict[tuple[object, ...], tuple[int, int]] = {}
        for session in sessions:
            key = (session.protocol, session.client, session.address, session.server)
            asked, answered = self._seen.get(key, (0, 0))
            if session.asked < asked or session.answered < answered:
                asked = answered = 0  # the client's port was used again
            self.asked += session.asked - asked
            self.answered += session.answered - answered
            now[key] = (session.asked, session.answered)
        self._seen = now
