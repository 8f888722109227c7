"""check_failover_dns: ask one question and look at the answer (RFC 1035), over UDP or TCP.

The probe passes when the reply has the wanted rcode and, for NOERROR, a record of the wanted type, found along CNAMEs
as a resolver does, with the expected value if one is configured. An empty answer is a failure: a server that lost its
zone still replies. After a truncated reply over UDP the probe repeats the query over TCP.

dnspython builds and parses the messages; the sockets are our own. A connected UDP socket gets ICMP errors at once and
accepts datagrams from the server only. A reply with another id is forged or late (RFC 5452, section 9.1): the probe
ignores it and waits on.
"""

import socket
import time
from collections.abc import Mapping

import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype

from check_failover.bounded import Budget, connect
from check_failover.checks import ProbeError, probing
from check_failover.checks.talk import MAX_ANSWER, MAX_TEXT, failed
from check_failover.model import Endpoint, Probe, clean

TRUNCATED = 0x02  # TC, in the third byte of a header (RFC 1035, 4.1.1)


class _WrongError(Exception):
    """The server replied, but the reply is not the wanted one."""


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: name, record, expect, rcode, transport (udp; from a config: the service's protocol)."""
    began = time.monotonic()
    query = _query(options)
    rcode = _rcode(options)
    expect = _expected(query, options)
    try:
        ask = _over_udp if options.get("transport", "udp") == "udp" else _over_tcp
        text = _judge(query, ask(server, query.to_wire(), Budget(timeout, MAX_ANSWER)), rcode, expect)
    except _WrongError as error:
        return Probe(False, time.monotonic() - began, clean(str(error))[:MAX_TEXT])
    except OSError as error:
        return failed(began, error)
    return Probe(True, time.monotonic() - began, text)


# ---------------------------------------------------------------- the question: errors here are ours, ProbeError


def _query(options: Mapping[str, object]) -> dns.message.Message:
    try:
        record = dns.rdatatype.from_text(str(options.get("record", "A")))
        query = dns.message.make_query(dns.name.from_text(str(options["name"])), record)
    except Exception as error:
        raise ProbeError(f"no question to ask: {error or type(error).__name__}") from None
    if dns.rdatatype.is_metatype(record):
        raise ProbeError(f"record: {options['record']} is no type of record that a server could have")
    return query


def _rcode(options: Mapping[str, object]) -> dns.rcode.Rcode:
    try:
        return dns.rcode.from_text(str(options.get("rcode", "NOERROR")))
    except Exception:
        raise ProbeError(f"rcode: {options['rcode']!r} is none that DNS knows") from None


def _expected(query: dns.message.Message, options: Mapping[str, object]) -> dns.rdata.Rdata | None:
    """``expect`` as a record of the wanted type, for a comparison by value and not by spelling."""
    if options.get("expect") is None:
        return None
    text, kind = str(options["expect"]), query.question[0].rdtype
    if kind in (dns.rdatatype.TXT, dns.rdatatype.SPF) and not text.startswith('"'):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    try:
        return dns.rdata.from_text(dns.rdataclass.IN, kind, text, origin=dns.name.root, relativize=False)
    except Exception as error:
        kind_name = dns.rdatatype.to_text(kind)
        raise ProbeError(f"expect: {options['expect']!r} is no {kind_name} record: {error}") from None


def _over_udp(server: Endpoint, query: bytes, budget: Budget) -> bytes:
    """The reply to ``query``; by TCP when it does not fit into a datagram."""
    wrong_ids = 0
    with socket.socket(socket.AF_INET6 if server.family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((server.address, server.port))
        sock.send(query)
        while True:
            try:
                sock.settimeout(budget.left())
                reply = sock.recv(65536)
            except TimeoutError:
                if wrong_ids:
                    raise _WrongError("no answer in time, only replies with a wrong id") from None
                raise
            if reply[:2] == query[:2]:
                break
            wrong_ids += 1
    if len(reply) > 2 and reply[2] & TRUNCATED:
        return _over_tcp(server, query, budget)
    return reply


def _over_tcp(server: Endpoint, query: bytes, budget: Budget) -> bytes:
    """RFC 7766: two bytes of length before each message."""
    with connect(server.address, server.port, budget) as sock, sock.makefile("rb") as stream:
        sock.sendall(len(query).to_bytes(2) + query)
        length = stream.read(2)
        reply = stream.read(int.from_bytes(length))
    if len(length) < 2 or len(reply) < int.from_bytes(length):
        raise _WrongError("closed the connection without a whole answer")
    return reply


def _judge(query: dns.message.Message, wire: bytes, rcode: dns.rcode.Rcode, expect: dns.rdata.Rdata | None) -> str:
    """The text of a good reply. Raises _WrongError with the fault of a bad one."""
    try:
        reply = dns.message.from_wire(wire)
    except Exception as error:  # dnspython's exceptions, and any other that a corrupt message causes in its parser
        raise _WrongError(f"the reply makes no sense: {error or type(error).__name__}") from None
    if not isinstance(reply, dns.message.QueryMessage) or not query.is_response(reply):
        raise _WrongError("the reply does not fit the question")
    if reply.rcode() != rcode:
        got, wanted = dns.rcode.to_text(reply.rcode()), dns.rcode.to_text(rcode)
        raise _WrongError(got if rcode == dns.rcode.NOERROR else f"{got}, expected {wanted}")
    if rcode != dns.rcode.NOERROR:
        return dns.rcode.to_text(rcode)
    question = query.question[0]
    asked = f"{question.name.to_text(omit_final_dot=True)} {dns.rdatatype.to_text(question.rdtype)}"
    try:
        found = reply.resolve_chaining().answer
    except Exception as error:  # a CNAME loop, or a chain without a final record
        raise _WrongError(f"{asked}: {error or type(error).__name__}") from None
    if not found:
        raise _WrongError(f"{asked}: no such record in the answer")
    if expect is not None and not any(_same(record, expect) for record in found):
        raise _WrongError(f"{asked} is {found[0]}, expected {expect}")
    return clean(f"{asked} is {found[0] if expect is None else expect}")[:MAX_TEXT]


def _same(record: dns.rdata.Rdata, expect: dns.rdata.Rdata) -> bool:
    """Equal by value; the strings of a TXT record may be cut anywhere (RFC 7208, 3.3)."""
    strings: tuple[bytes, ...] | None = getattr(record, "strings", None)
    if strings is not None:
        return b"".join(strings) == b"".join(getattr(expect, "strings", ()))
    return bool(record == expect)


OPTIONS = probing.options("dns")
check = probing.check("dns", __doc__, probe, OPTIONS, default_port=53, needed=("name",))
