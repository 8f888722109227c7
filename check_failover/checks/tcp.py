"""placeholder until the plugin file lands"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping

from check_failover.model import Endpoint, Probe


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    t = time.monotonic()
    try:
        with socket.create_connection((server.address, server.port), timeout) as s:
            s.settimeout(timeout)
            s.sendall(str(options.get("send", "hi")).encode())
            if not s.recv(100):
                return Probe(False, time.monotonic() - t, "closed")
    except ConnectionRefusedError:
        return Probe(False, time.monotonic() - t, "connection refused", refused=True)
    except OSError as e:
        return Probe(False, time.monotonic() - t, str(e))
    return Probe(True, time.monotonic() - t, "ok")
