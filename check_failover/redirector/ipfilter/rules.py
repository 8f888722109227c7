"""The words of ipnat: read the rules that ``ipnat -l`` prints, and write those that ``ipnat -f -`` takes.

Pure, standard library only. Only what this project must understand has a structure of its own: ``rdr`` rules, because
they decide where a client ends up. Every other line (``map``, ``bimap``, ``rewrite``, comments, whatever a later
version brings) is an ``Other`` and keeps its text. ``str()`` of a parsed line is that line again.

Source: ipnat(5) and the grammar of IPFilter 5.1.2; checked against the lists that the real tool printed
(tests/fixtures/ipfilter).
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from check_failover.model import Endpoint, Service, Target

MARK = "cfo."
TAG_LENGTH = 15  # IPFTAG_LEN is 16, and ipnat prints a map rule's tag up to a zero byte that must still fit in
PORTMAP = "20000:60000"  # source ports of a service's map rule; clear of the controller's own

# Words that ipnat would not take for an interface's name.
KEYWORDS = frozenset(
    """
    age any auto bimap config divert dst dstlist eq frag from ge gt hash icmpidmap in inet inet6 le lt map map-block
    mask mssclamp ne netmask no on out pool port portmap ports proto proxy purge range rdr rewrite round-robin
    sequential src sticky tag tcp tcpudp to udp
    """.split()  # noqa: SIM905 - sixty words, one per line, are no easier to read
)

_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,14}")
_RDR = re.compile(
    r"rdr (?P<interfaces>\S+) (?:(?P<family>inet6?) )?"
    r"(?:(?P<source>(?:! )?from \S+(?: port (?:\S+ \S+|\d+ (?:<>|><) \d+))?) to )?"
    r"(?P<destination>any|[0-9A-Fa-f:./]+)(?P<port>(?: port (?:\S+ <> \S+|\S+ >< \S+|[!<>=]+ \S+|\S+))?) -> "
    r"(?P<servers>[0-9A-Fa-f:./,-]+)(?P<server_port>(?: port (?:= )?\S+)?)"
    r"(?: (?P<protocol>tcp/udp|tcp|udp))?(?P<options>(?: .+)?)"
)


@dataclass(frozen=True, slots=True)
class Rdr:
    """One ``rdr`` rule, each part as it was printed; the properties say what it means."""

    interfaces: str  # "em0", "em0,*"
    family: str | None  # the word inet or inet6
    source: str | None  # "from 198.51.100.0/24", or None in the short form
    destination: str  # "192.0.2.10/32"
    port: str  # " port 80", " port 6000-6010", " port = https", ""
    servers: str  # "10.0.0.1/32", "10.0.0.1,10.0.1.1"
    server_port: str  # " port 8080", ""
    protocol: str | None  # missing in the lists of older versions
    options: str = ""  # " round-robin sticky tag x purge"

    def __str__(self) -> str:
        head = ["rdr", self.interfaces]
        head += [self.family] if self.family else []
        head += [self.source, "to"] if self.source else []
        text = f"{' '.join(head)} {self.destination}{self.port} -> {self.servers}{self.server_port}"
        return text + (f" {self.protocol}" if self.protocol else "") + self.options

    @property
    def interface(self) -> str:
        """The interface where packets must come in for the rule to apply."""
        return self.interfaces.split(",", 1)[0]

    @property
    def tag(self) -> str | None:
        """The owner's mark."""
        return _tag_in(self.options)

    @property
    def server(self) -> Endpoint | None:
        """The server, where it is a single one with one port."""
        address, slash, bits = self.servers.partition("/")
        port = self.server_port.removeprefix(" port ").removeprefix("= ")
        try:
            packed = ipaddress.ip_address(address)
            return Endpoint(packed.compressed, int(port)) if not slash or int(bits) == packed.max_prefixlen else None
        except ValueError:
            return None

    @property
    def network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        """The addresses it redirects; None where we cannot tell."""
        text = {"0/0": "0.0.0.0/0", "any": "0.0.0.0/0"}.get(self.destination, self.destination)
        try:
            return ipaddress.ip_network(text, strict=False)
        except ValueError:
            return None

    def covers(self, interface: str, address: Endpoint, protocol: str) -> bool:
        """Whether it takes every client's packets to that address and port that come in on that interface.

        A rule with a source of its own is a site's exception for some clients: it takes theirs only, so it does not.
        """
        network = self.network
        return (
            self.interface in (interface, "*")
            and (self.source is None or self.source in ("from any", "from 0/0", "from ::/0"))
            and network is not None
            and network.version == address.family
            and ipaddress.ip_address(address.address) in network
            and self._has_port(address.port)
            and (self.protocol is None or protocol in self.protocol.split("/"))
        )

    def _has_port(self, port: int) -> bool:
        text = self.port.removeprefix(" port ").removeprefix("= ")
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if match is None:
            return text == ""
        low, high = int(match[1]), int(match[2] or match[1])
        return low <= port <= high or (low, high) == (0, 0)  # "port 0" is how ipnat prints "every port"

    def same_effect(self, other: Rdr) -> bool:
        """Equal but for the spelling (``/32`` behind a server, ``port = 80``) and for a protocol that is not shown."""
        mine, theirs = self._meaning(), other._meaning()
        return mine[:-1] == theirs[:-1] and (None in (mine[-1], theirs[-1]) or mine[-1] == theirs[-1])

    def _meaning(self) -> tuple[object, ...]:
        servers: object = self.server or self.servers
        port = self.port.replace("= ", "")
        return (self.interfaces, self.source, self.network, port, servers, self.options, self.protocol)


@dataclass(frozen=True, slots=True)
class Other:
    """Any other line, kept as it is."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def tag(self) -> str | None:
        return _tag_in(self.text)


Rule = Rdr | Other


def _tag_in(text: str) -> str | None:
    match = re.search(r" tag (\S+)", text)
    return match[1] if match else None


def parse(line: str) -> Rule:
    """One line of a rules file or a list. Never fails: what is not understood is an ``Other``."""
    match = _RDR.fullmatch(line)
    return Rdr(**match.groupdict()) if match else Other(line)


def rdr(service: Service, target: Target, interface: str, tag: str | None) -> Rdr:
    """The rule that sends a service to a target's server. Both ports and the protocol are always given: without them
    ipnat takes more than was meant. No ``/32`` behind the server: version 4 refuses it."""
    six = service.address.family == 6
    server = service.server(target)
    return Rdr(
        interfaces=interface,
        family="inet6" if six else None,
        source=None,
        destination=f"{service.address.address}/{128 if six else 32}",
        port=f" port {service.address.port}",
        servers=server.address,
        server_port=f" port {server.port}",
        protocol=service.protocol,
        options=f" tag {tag}" if tag else "",
    )


def source_map(service: Service, server: Endpoint, interface: str, tag: str | None) -> Other:
    """The rule by which a server sees the controller's address, so that its answers come back this way."""
    six, bits = ("inet6 ", 128) if server.family == 6 else ("", 32)
    return Other(
        f"map {interface} {six}from any to {server.address}/{bits} port = {server.port} -> "
        f"{service.source_nat}/{bits} portmap {service.protocol} {PORTMAP}" + (f" tag {tag}" if tag else "")
    )


def same_line(a: Rule, b: Rule) -> bool:
    """Whether two rules are one and the same to the kernel, however they are spelt."""
    if isinstance(a, Rdr) and isinstance(b, Rdr):
        return a.same_effect(b)
    return type(a) is type(b) and _plain(str(a)) == _plain(str(b))


def _plain(text: str) -> str:
    return " ".join(_spelt(word) for word in re.sub(r"\bany\b|::/0\b", "0/0", text).split())


def _spelt(word: str) -> str:
    """An address in one spelling: the system prints ``::ffff:10.0.0.1`` for ``::ffff:a00:1``."""
    try:
        return ipaddress.ip_interface(word).compressed
    except ValueError:
        return word


def tag_of(name: str) -> str:
    """The owner's mark of a service: ``cfo.NAME``, or with a checksum where that is too long.

    A dot cannot be in a service's name, so a shortened one is never another service's full one.
    """
    full = MARK + name
    if len(full) <= TAG_LENGTH:
        return full
    check = hashlib.sha256(name.encode()).hexdigest()[:4]
    return f"{full[: TAG_LENGTH - 5]}.{check}"


def valid_interface(name: str) -> bool:
    """Whether ipnat takes the name as it stands."""
    return bool(_INTERFACE.fullmatch(name)) and name not in KEYWORDS


def serving(rules: Iterable[Rule], interface: str, address: Endpoint, protocol: str) -> Rdr | None:
    """The rule that the kernel applies: longest destination mask first, then the order of the list."""
    candidates = [rule for rule in rules if isinstance(rule, Rdr) and rule.covers(interface, address, protocol)]
    # A rule that covers an address has a network; max() keeps the first of equals.
    return max(candidates, key=lambda rule: rule.network.prefixlen if rule.network else -1, default=None)


def lines(rules: Sequence[Rule]) -> str:
    """Rules as text for ipnat: each ends with a newline, or ipnat would lose the last word."""
    return "".join(f"{rule}\n" for rule in rules)
