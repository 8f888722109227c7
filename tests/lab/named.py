"""A private bind9: one zone, one address and port; the caller ends it.

    with Named(directory, "127.0.0.1", 13053) as named: ...

``www`` has an address, ``alias`` leads to it, ``big`` does not fit into 512 bytes, ``broken.test`` is a zone whose file
is wrong (SERVFAIL), everything else is refused (no recursion).
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import dns.exception
import dns.message
import dns.query

from tests.lab.daemon import Program

NAMED = "/usr/sbin/named"

CONFIG = """\
options {{
    directory "{directory}";
    pid-file "{directory}/named.pid";
    session-keyfile "{directory}/session.key";
    managed-keys-directory "{directory}";
    listen-on port {port} {{ {v4}; }};
    listen-on-v6 port {port} {{ {v6}; }};
    recursion no;
    dnssec-validation no;
    notify no;
}};
controls {{ }};
zone "example.org" {{ type primary; file "{zone}"; }};
zone "broken.test" {{ type primary; file "none"; }};
"""
ZONE = """\
$TTL 60
@      IN SOA ns.example.org. admin.example.org. 1 3600 600 86400 60
       IN NS ns
       IN MX 10 mail
ns     IN A 192.0.2.53
mail   IN A 192.0.2.25
www    IN A 192.0.2.80
       IN A 192.0.2.81
       IN AAAA 2001:db8::80
alias  IN CNAME www
text   IN TXT "one and " "two"
"""
BIG = "".join(f"big IN A 10.9.{n // 250}.{n % 250 + 1}\n" for n in range(100))


class Named(Program):
    """One server, in the foreground."""

    out = "named.out"

    def __init__(self, directory: Path, address: str, port: int, argv_prefix: Sequence[str] = ()) -> None:
        directory.mkdir(parents=True)
        self.directory, self.address, self.port = directory, address, port
        self._prefix = tuple(argv_prefix)
        self._configure("zone")
        (directory / "zone").write_text(ZONE + BIG)
        # A copy: where AppArmor is on, Debian's profile for /usr/sbin/named lets it read /etc/bind and little else.
        self._program = str(shutil.copy(NAMED, directory / "named"))

    def _configure(self, zone: str) -> None:
        v4, v6 = ("none", self.address) if ":" in self.address else (self.address, "none")
        text = CONFIG.format(directory=self.directory, port=self.port, v4=v4, v6=v6, zone=zone)
        (self.directory / "named.conf").write_text(text)

    def spoil(self) -> None:
        """Load a zone whose file is missing: answers SERVFAIL from now on."""
        self._configure("lost")
        os.kill(self.pid, signal.SIGHUP)

    def argv(self) -> list[str]:
        return [*self._prefix, self._program, "-g", "-n", "1", "-c", str(self.directory / "named.conf")]

    def serves(self) -> bool:
        if self._prefix:  # in another namespace: rely on its own log
            return "all zones loaded" in (self.directory / "named.out").read_text()
        try:
            dns.query.udp(dns.message.make_query("www.example.org", "A"), self.address, 0.5, self.port)
        except (dns.exception.DNSException, OSError):
            return False
        return True
