"""What the tests of stage 1 are made of: messages of the protocols, packets of a conversation, a stage with a clock.

``Stage`` feeds a Watch with packets at simulated moments and calls its clock exactly when it asks for it, so hours pass
in milliseconds and every suspicion has its exact moment. ``Talk`` is one client's connection.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Iterator

from check_failover.model import CheckSpec, Detector, Endpoint, Policy, Service, Suspicion
from check_failover.sniffer.stage1.packet import ACK, FIN, PSH, RST, SYN, TCP, UDP, Packet
from check_failover.sniffer.stage1.traffic import TrafficMonitor

ADDRESS, PRIMARY, STANDBY = "192.0.2.10", "10.0.0.11", "10.0.0.12"
WORD = 1 << 32


def service(
    check: str = "ldap",
    *,
    port: int = 389,
    protocol: str = "tcp",
    dialect: str | None = None,
    source_nat: str | None = None,
    address: str = ADDRESS,
    **options: object,
) -> Service:
    """A service as a config would give it."""
    six = ":" in address
    return Service(
        name=check,
        host="host",
        protocol=protocol,
        address=Endpoint(address, port),
        primary=Endpoint("2001:db8::11" if six else PRIMARY, port),
        standby=Endpoint("2001:db8::12" if six else STANDBY, port),
        check=CheckSpec(check, options),
        policy=Policy(),
        source_nat=source_nat,
        dialect=dialect,
    )


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


# ---------------------------------------------------------------- LDAP (RFC 4511), in BER (X.690)


def ber(tag: int, body: bytes, long_form: int = 0) -> bytes:
    """Tag, length, value; ``long_form``: so many bytes of length, as OpenLDAP and Active Directory like it."""
    if long_form:
        return bytes([tag, 0x80 | long_form]) + len(body).to_bytes(long_form, "big") + body
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    size = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body


def integer(number: int) -> bytes:
    return ber(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def ldap(number: int, tag: int, body: bytes, controls: bytes = b"", long_form: int = 0) -> bytes:
    """An LDAPMessage."""
    return ber(0x30, integer(number) + ber(tag, body, long_form) + controls, long_form)


def bind(number: int) -> bytes:
    return ldap(number, 0x60, integer(3) + ber(0x04, b"cn=reader") + ber(0x80, b"secret"))


def search(number: int, *controls: bytes, words: int = 1) -> bytes:
    """A search for ``words`` names."""
    parts = b"".join(ber(0xA3, ber(0x04, b"cn") + ber(0x04, b"word%05d" % i)) for i in range(words))
    found = b"\x0a\x01\x02\x0a\x01\x00" + integer(0) + integer(0) + b"\x01\x01\x00" + ber(0xA1, parts) + ber(0x30, b"")
    return ldap(
        number, 0x63, ber(0x04, b"dc=example,dc=org") + found, ber(0xA0, b"".join(controls)) if controls else b""
    )


def control(oid: bytes, value: bytes) -> bytes:
    return ber(0x30, ber(0x04, oid) + ber(0x04, value))


def persistent_search() -> bytes:
    """draft-ietf-ldapext-psearch-03."""
    return control(b"2.16.840.1.113730.3.4.3", ber(0x30, integer(15) + b"\x01\x01\xff" + b"\x01\x01\xff"))


def sync_request(mode: int) -> bytes:
    """RFC 4533, 2.2: 1 refreshOnly, 3 refreshAndPersist."""
    return control(b"1.3.6.1.4.1.4203.1.9.1.1", ber(0x30, bytes([0x0A, 1, mode]) + ber(0x04, b"rid=1,csn=2020")))


def entry(number: int, size: int = 40) -> bytes:
    return ldap(number, 0x64, ber(0x04, b"cn=a") + ber(0x30, b"x" * size))


def result(number: int, code: int = 0, tag: int = 0x65, long_form: int = 0) -> bytes:
    """A final answer; the tag of a search's by default."""
    return ldap(number, tag, bytes([0x0A, 1, code]) + ber(0x04, b"") + ber(0x04, b""), b"", long_form)


def abandon(number: int, which: int) -> bytes:
    return ldap(number, 0x50, which.to_bytes(which.bit_length() // 8 + 1, "big"))


def unbind(number: int) -> bytes:
    return ldap(number, 0x42, b"")


def extended(number: int, oid: bytes) -> bytes:
    return ldap(number, 0x77, ber(0x80, oid))


START_TLS = b"1.3.6.1.4.1.1466.20037"

# ---------------------------------------------------------------- DNS, HTTP


def dns(number: int, *, code: int = 0, response: bool = False, name: bytes = b"\7example\3org\0") -> bytes:
    flags = 0x0100 | (0x8080 if response else 0) | code
    return struct.pack("!6H", number, flags, 1, 0, 0, 0) + name + b"\0\1\0\1"


def framed(message: bytes) -> bytes:
    """As over TCP."""
    return struct.pack("!H", len(message)) + message


def get(path: str = "/", method: str = "GET", headers: str = "", body: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nHost: example.org\r\n{headers}{length}\r\n{body}".encode()


def http(code: int = 200, body: str = "ok", headers: str = "") -> bytes:
    return f"HTTP/1.1 {code} Reason\r\n{headers}Content-Length: {len(body)}\r\n\r\n{body}".encode()


# ---------------------------------------------------------------- conversations


class Stage:
    """A Watch, a clock, and what was suspected when."""

    def __init__(self, watched: Service | None = None, start: float = 1000.0) -> None:
        self.service = watched or service()
        self.traffic = TrafficMonitor(self.service)
        self.now = start
        self.found: list[Suspicion] = []

    def feed(self, packet: Packet, frame: bytes | None = None) -> None:
        found = self.traffic.packet(packet, frame)
        if found is not None:
            self.found.append(found)

    def wait(self, seconds: float) -> None:
        """Let time pass; the clock rings whenever the watch wants it to."""
        end = self.now + seconds
        for _ in range(100_000):
            due = self.traffic.deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            found = self.traffic.tick(self.now)
            if found is not None:
                self.found.append(found)
        else:
            raise AssertionError("the clock rings for ever")
        self.now = end

    def detectors(self) -> list[Detector]:
        return [found.detector for found in self.found]

    def first(self, detector: Detector) -> Suspicion:
        return next(found for found in self.found if found.detector is detector)


class Talk:
    """One client's TCP connection, both ends of it, as seen on the controller."""

    def __init__(self, stage: Stage, port: int = 40000, client: str = "198.51.100.7", isn: int = 1000) -> None:
        self.stage, self.client, self.port = stage, packed(client), port
        self.isn = self.seq = isn
        self.ack = (isn ^ 0x5A5A5A5A) % WORD
        self.address, self.service_port = stage.service.address.packed, stage.service.address.port

    def up(self, flags: int, seq: int, payload: bytes = b"", captured: int | None = None) -> Packet:
        return Packet(
            *(self.stage.now, TCP, self.client, self.port, self.address, self.service_port),
            *(flags, seq % WORD, self.ack, payload[:captured], len(payload)),
        )

    def down(self, flags: int, seq: int, payload: bytes = b"", captured: int | None = None) -> Packet:
        return Packet(
            *(self.stage.now, TCP, self.address, self.service_port, self.client, self.port),
            *(flags, seq % WORD, self.seq, payload[:captured], len(payload)),
        )

    def syn(self) -> None:
        self.seq = (self.isn + 1) % WORD
        packet = self.up(SYN, self.isn)
        self.stage.feed(packet, b"frame of %d" % self.port)

    def accept(self) -> None:
        self.stage.feed(self.down(SYN | ACK, self.ack))
        self.ack = (self.ack + 1) % WORD
        self.stage.feed(self.up(ACK, self.seq))

    def connect(self, round_trip: float = 0.001) -> Talk:
        self.syn()
        self.stage.wait(round_trip)
        self.accept()
        return self

    def ask(self, payload: bytes, captured: int | None = None, *, seen: bool = True) -> None:
        """The client sends; ``seen`` False: it was lost before the controller."""
        packet = self.up(ACK | PSH, self.seq, payload, captured)
        self.seq = (self.seq + len(payload)) % WORD
        if seen:
            self.stage.feed(packet)

    def again(self, size: int) -> None:
        """The client repeats its last ``size`` bytes."""
        self.stage.feed(self.up(ACK | PSH, self.seq - size, b"r" * size))

    def acknowledge(self) -> None:
        """The server's kernel has the client's bytes; the application has said nothing."""
        self.stage.feed(self.down(ACK, self.ack))

    def answer(self, payload: bytes, captured: int | None = None, *, seen: bool = True) -> None:
        packet = self.down(ACK | PSH, self.ack, payload, captured)
        self.ack = (self.ack + len(payload)) % WORD
        if seen:
            self.stage.feed(packet)

    def answer_again(self, payload: bytes) -> None:
        """The server repeats its last bytes."""
        self.stage.feed(self.down(ACK | PSH, self.ack - len(payload), payload))

    def client_closes(self) -> None:
        self.stage.feed(self.up(FIN | ACK, self.seq))
        self.seq = (self.seq + 1) % WORD

    def server_closes(self) -> None:
        self.stage.feed(self.down(FIN | ACK, self.ack))
        self.ack = (self.ack + 1) % WORD

    def client_resets(self) -> None:
        self.stage.feed(self.up(RST, self.seq))

    def server_resets(self) -> None:
        self.stage.feed(self.down(RST | ACK, self.ack if self.seq != self.isn + 1 else 0))

    def refused(self, server: str | None = PRIMARY, to: str | None = None) -> None:
        """RST to the SYN, as it comes from the server, or (None) as the client gets it."""
        packet = self.down(RST | ACK, 0)
        if server is not None:
            packet = packet._replace(src=packed(server))
        if to is not None:
            packet = packet._replace(dst=packed(to))
        self.stage.feed(packet)

    def serve(self, request: bytes, reply: bytes, after: float = 0.002) -> None:
        """A request and its answer."""
        self.ask(request)
        self.stage.wait(after)
        self.answer(reply)

    def close(self) -> None:
        """In order, begun by the client."""
        self.client_closes()
        self.stage.wait(0.001)
        self.server_closes()
        self.stage.feed(self.up(ACK, self.seq))


def datagram(stage: Stage, port: int, payload: bytes, client: str = "198.51.100.7") -> None:
    """A client's UDP request."""
    address = stage.service.address
    stage.feed(
        Packet(stage.now, UDP, packed(client), port, address.packed, address.port, 0, 0, 0, payload, len(payload)),
        b"frame of %d" % port,
    )


def datagram_back(stage: Stage, port: int, payload: bytes, client: str = "198.51.100.7") -> None:
    """The server's UDP reply."""
    address = stage.service.address
    stage.feed(
        Packet(stage.now, UDP, address.packed, address.port, packed(client), port, 0, 0, 0, payload, len(payload))
    )


def learn(stage: Stage, replies: int = 128, seconds: float = 0.002, port: int = 39000) -> Talk:
    """A connection on which the watch learns how long binds and searches take."""
    talk = Talk(stage, port).connect()
    for number in range(1, replies + 1):
        talk.serve(search(number), entry(number) + result(number), seconds)
        talk.serve(bind(number), result(number, tag=0x61), seconds)
        stage.wait(0.01)
    assert not stage.found
    return talk


def segments(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def repeatedly(stage: Stage, seconds: float, every: float, act: Callable[[int], None]) -> None:
    """Do something now and again for a while."""
    end, count = stage.now + seconds, 0
    while stage.now < end:
        act(count)
        count += 1
        stage.wait(every)
