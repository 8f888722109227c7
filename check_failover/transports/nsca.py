"""Results for a remote core through a ``send_nsca``-compatible client, e.g. NSCA-ng's: encrypted, with a receipt.

The client is an argument list, run without a shell; its own configuration file names server and password. ETB separates
the results of one call, see send_nsca(8). The client of NSCA-ng exits with 0 only when the server answered OKAY to each
result; it does not show that the server queues results while Nagios is stopped (``core_deadline`` covers that). NSCA's
own client gets no receipt: results that the server drops are lost without an error.

Source: send_nsca(8), send_nsca.cfg(5), nsca-ng.cfg(5), version 1.6.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from check_failover import capabilities, programs
from check_failover.model import PassiveResult, clean
from check_failover.transports import TransportError, name, output

ETB = "\x17"  # end of transmission block: between two results
TIMEOUT = 5.0  # seconds for one call


class Nsca:
    """Options: send_nsca (the client's argument list), timeout (seconds)."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._argv = [str(part) for part in options["send_nsca"]]
        self._timeout = float(options.get("timeout", TIMEOUT))

    def send(self, results: Sequence[PassiveResult]) -> None:
        """One call for all results, in order. Raises TransportError; some results may have arrived then."""
        now = time.time()
        # host[tab]service[tab]status[tab]message[newline]; the client escapes what the core needs escaped
        lines = ETB.join(
            f"{name(one.host)}\t{name(one.service)}\t{int(one.state)}\t{output(one, now)}\n" for one in results
        ).encode()
        capabilities.drop_ambient()
        try:
            done = programs.run(self._argv, self._timeout, stdin=lines)
        except programs.LateError:
            text = f"{self._argv[0]}: no answer from the NSCA server within {self._timeout:g} s"
            raise TransportError(text) from None
        except OSError as error:
            raise TransportError(f"{self._argv[0]}: cannot run: {error.strerror}") from None
        if done.code:
            said = (done.err or done.out).decode(errors="replace").partition("\n")[0]
            raise TransportError(f"{self._argv[0]}: {clean(said) or f'exit code {done.code}'}")
