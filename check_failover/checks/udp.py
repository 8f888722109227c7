"""check_failover_udp: send a datagram and look for a text in the answers; for any service over UDP.

Without ``expect`` any answer is a pass. Silence is a failure, so the check fits services that answer each datagram.
Where no process listens, the host sends ICMP port unreachable, and the connected socket reports "connection refused".
"""

import socket
import time
from collections.abc import Mapping

from check_failover.bounded import Budget
from check_failover.checks import probing
from check_failover.checks.talk import MAX_ANSWER, failed, unescape, unexpected
from check_failover.model import Endpoint, Probe


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: send, expect."""
    began = time.monotonic()
    send, expect = unescape(str(options["send"])), unescape(str(options.get("expect") or ""))
    family = socket.AF_INET6 if server.family == 6 else socket.AF_INET
    answer: bytes | None = None
    budget = Budget(timeout, MAX_ANSWER)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((server.address, server.port))
            sock.send(send)
            while answer is None or expect not in answer:
                sock.settimeout(budget.left())
                answer = sock.recv(65536)
    except TimeoutError as error:
        if answer is None:
            return failed(began, error)
        return Probe(False, time.monotonic() - began, unexpected(answer, expect))
    except OSError as error:
        return failed(began, error)
    return Probe(True, time.monotonic() - began, "answers as expected")


OPTIONS = probing.options("udp")
check = probing.check("udp", __doc__, probe, OPTIONS, needed=("send",))
