"""A private apache2 with HTTP and HTTPS, with a certificate signed by its own CA; the caller ends it.

    with Apache(directory, "127.0.0.1", 13080, 13443) as apache: ...

Two name-based sites: ``www.test`` (the certificate's name) with ``/``, ``/gone`` (404), ``/sick`` (503), ``/moved``
(301) and ``/count`` (a big file); any other name gets the default site, which says so.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Program

APACHE, MODULES = "/usr/sbin/apache2", Path("/usr/lib/apache2/modules")
OPENSSL = "/usr/bin/openssl"
NAME = "www.test"

CONFIG = """\
ServerName {name}
Listen {host}:{port}
Listen {host}:{tls_port}
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
DefaultRuntimeDir {directory}
Mutex file:{directory}
User nobody
Group nogroup
StartServers 1
{modules}
SSLCertificateFile {directory}/server.pem
SSLCertificateKeyFile {directory}/server.key
<Directory />
    Require all granted
</Directory>
DirectoryIndex index.html
{sites}
"""
SITE = """\
<VirtualHost *:{port}>
    ServerName {name}
    DocumentRoot {directory}/{root}
    SSLEngine {tls}
    Redirect 301 /moved http://elsewhere.test/
    Redirect 503 /sick
</VirtualHost>
"""
WANTED = ("mpm_prefork", "authz_core", "alias", "dir", "ssl", "socache_shmcb")


class Apache(Program):
    """One server, in the foreground; ``ca_file`` signs its certificate."""

    out = "apache2.out"

    def __init__(self, directory: Path, host: str, port: int, tls_port: int, argv_prefix: Sequence[str] = ()) -> None:
        self._prefix = tuple(argv_prefix)
        self.directory, self.host, self.port, self.tls_port = directory, host, port, tls_port
        self.ca_file = directory / "ca.pem"
        for root, text in (("www", "welcome to the site"), ("default", "no such site")):
            (directory / root).mkdir(parents=True)
            (directory / root / "index.html").write_text(f"<p>{text}</p>\n")
        (directory / "www" / "count").write_text("".join(f"{n}\n" for n in range(300_000)))
        certificate(directory, "server", f"DNS:{NAME}")
        sites = "".join(
            SITE.format(port=at, name=name, directory=directory, root=root, tls=tls)
            for at, tls in ((port, "off"), (tls_port, "on"))
            for name, root in (("default.test", "default"), (NAME, "www"))
        )
        modules = "\n".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in WANTED)
        shown = f"[{host}]" if ":" in host else host
        (directory / "apache.conf").write_text(
            CONFIG.format(
                name=NAME, host=shown, port=port, tls_port=tls_port, directory=directory, modules=modules, sites=sites
            )
        )

    def argv(self) -> list[str]:
        return [*self._prefix, APACHE, "-f", str(self.directory / "apache.conf"), "-D", "FOREGROUND"]

    def spoil(self) -> None:
        """Answer every request with 503 from now on; the reload interrupts no client."""
        config = self.directory / "apache.conf"
        config.write_text(config.read_text().replace("Redirect 503 /sick", "RedirectMatch 503 .*"))
        os.kill(self.pid, signal.SIGUSR1)

    def serves(self) -> bool:
        if self._prefix:  # in another namespace: rely on its own log
            return (self.directory / "apache.pid").exists()
        try:
            socket.create_connection((self.host, self.tls_port), 1.0).close()
        except OSError:
            return False
        return True


def certificate(directory: Path, name: str, subject: str, *, days: int = 2) -> None:
    """``name.pem`` and ``name.key`` for a subjectAltName, signed by ``ca.pem``, which is made when it is not there."""
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    if not (directory / "ca.pem").exists():
        _openssl(
            directory, "req", "-x509", *made, "-days", "2", "-subj", "/CN=the test's own CA", "-out", "ca.pem",
            "-keyout", "ca.key",
        )  # fmt: skip
    _openssl(directory, "req", "-new", *made, "-subj", "/CN=server", "-out", "request", "-keyout", f"{name}.key")
    (directory / "extensions").write_text(f"subjectAltName={subject}\n")
    _openssl(
        directory, "x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", str(days), "-extfile", "extensions", "-out", f"{name}.pem",
    )  # fmt: skip


def _openssl(directory: Path, *argv: str) -> None:
    done = subprocess.run([OPENSSL, *argv], cwd=directory, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
