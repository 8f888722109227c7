"""check_failover_tcp: connect, send a text, and look for a text in the answer; for any service over TCP.

Without ``send`` and ``expect`` an accepted connection is a pass. A hung process accepts connections too, so configure
both if the service answers anything.
"""

import socket
import time
from collections.abc import Mapping

from check_failover.bounded import Budget, connect, securing
from check_failover.checks import probing
from check_failover.checks.talk import MAX_ANSWER, failed, server_name, tls_context, unescape, unexpected
from check_failover.model import Endpoint, Probe, TooMuchError


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: send, expect, tls, ca_file, server_name."""
    began = time.monotonic()
    context, name = (tls_context(options), server_name(server, options)) if options.get("tls") else (None, "")
    try:
        budget = Budget(timeout, MAX_ANSWER)
        with connect(server.address, server.port, budget) as plain:
            if context is None:
                wrong = _talk(plain, options)
            else:
                with securing(context, budget).wrap_socket(plain, server_hostname=name) as secured:
                    wrong = _talk(secured, options)
    except (OSError, TooMuchError) as error:
        return failed(began, error)
    return Probe(wrong is None, time.monotonic() - began, wrong or "answers as expected")


def _talk(sock: socket.socket, options: Mapping[str, object]) -> str | None:
    """Send and read until the expected text; returns the fault, or None."""
    send, expect = unescape(str(options.get("send") or "")), unescape(str(options.get("expect") or ""))
    if send:
        sock.sendall(send)
    answer = b""
    while (expect or send) and (not answer or (expect and expect not in answer)):
        chunk = sock.recv(4096)
        if not chunk:
            return "closed the connection without an answer" if not answer else unexpected(answer, expect)
        answer += chunk
    return None


OPTIONS = probing.options("tcp")
check = probing.check("tcp", __doc__, probe, OPTIONS)
