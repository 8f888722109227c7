"""The checks, one file each: ``check`` is the plugin that Nagios runs, ``probe()`` is also stage 2 of the sniffer.

``probe(server, options, timeout)`` does the I/O once and never raises: whatever the server does wrong is a failed
``Probe`` with its reason. A fault of our own (no such CA file, missing library) raises ``ProbeError``: that is UNKNOWN,
and UNKNOWN never moves traffic.

A new check type, in five steps; a test fails and names what is missing:

1. a file here with ``probe``, ``OPTIONS`` and ``check``: ``udp`` is the shortest example;
2. its line in ``PROBES``;
3. what its options may be, with the help: ``check_TYPE`` in ``$defs`` of ``config.schema.json`` (``OPTIONS`` reads it);
4. an example of its options in ``EXAMPLES`` of ``tests/lab/registry.py``, with which the tests run it;
5. README: its name and its options, in the table of ``[service.check]``, and its program, below "failoverctl".

``make registry`` writes the rest: the schema's list of types, the commands for Nagios and Icinga 2, the Director's
basket, the entry point in ``setup.cfg``. ``nagios-conf/install`` links every program that is called check_failover_*.
Where stage 1 can read the protocol, a dialect with the type's name is used by itself (``sniffer.stage1.dialects``).
"""

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from check_failover.model import CheckSpec, Endpoint, OneLineError, Probe, Target, clean

# check type in the config -> module; imported when first used, because ldap3 and requests weigh 20 MiB each
PROBES = {
    "ldap": "check_failover.checks.ldap",
    "dns": "check_failover.checks.dns",
    "http": "check_failover.checks.http",
    "tcp": "check_failover.checks.tcp",
    "udp": "check_failover.checks.udp",
    "plugin": "check_failover.checks.external",
}


class ProbeError(OneLineError):
    """The probe could not be made: a fault of the configuration or of this machine. One line."""


class QueryError(Exception):
    """A query failed: ``target`` names the server, the text gives the reason."""

    def __init__(self, target: Target, text: str) -> None:
        super().__init__(f"{target}: {text}")
        self.target = target


class ProbeFunction(Protocol):
    """``timeout`` in seconds, for the whole probe. Raises ProbeError."""

    def __call__(self, server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe: ...


def probe_function(spec: CheckSpec) -> ProbeFunction:
    """The probe() of a check type; imports its module. Raises ProbeError when a Python package is missing.

    Any other exception, by what the server sends, is a failed probe: one that never ended would prove nothing.
    """
    try:
        probe = cast("ProbeFunction", importlib.import_module(PROBES[spec.type]).probe)
    except ImportError as error:
        raise ProbeError(f"check type {spec.type!r} needs a Python package: {error}") from None

    def guarded(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
        began = time.monotonic()
        try:
            return probe(server, options, timeout)
        except ProbeError:
            raise
        except Exception as error:
            import logging  # 10 ms, which a check need not spend

            text, log = clean(f"internal error: {error!r}")[:200], logging.getLogger(__name__)
            log.error("probe of %s: %s", server, text, exc_info=log.isEnabledFor(logging.DEBUG))
            return Probe(False, time.monotonic() - began, text)

    return guarded


def secret(path: object, what: str) -> str:
    """The password in a file, without the newline at its end. Raises ProbeError."""
    try:
        password = Path(str(path)).read_text("utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ProbeError(f"{path}: cannot read the {what}: {reason}") from None
    if not password:
        raise ProbeError(f"{path}: is empty; write the {what} into it")
    return password
