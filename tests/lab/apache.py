"""A private apache2 with HTTP and HTTPS, its certificate signed by a CA of its own; ended by whoever made it.

    with Apache(directory, "127.0.0.1", 13080, 13443) as apache: ...

Two name-based sites: ``www.test`` (the certificate's name) with ``/``, ``/gone`` (404), ``/sick`` (503), ``/moved``
(301) and ``/count`` (a big file); any other name gets the default site, which says so.
"""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.netns import end, poll

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


class Apache:
    """One server, in the foreground; ``ca_file`` signs its certificate."""

    def __init__(self, directory: Path, host: str, port: int, tls_port: int, argv_prefix: Sequence[str] = ()) -> None:
        self._prefix = tuple(argv_prefix)
        self.directory, self.host, self.port, self.tls_port = directory, host, port, tls_port
        self.ca_file = directory / "ca.pem"
        self._process: subprocess.Popen[Any] | None = None
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

    def __enter__(self) -> Apache:
        with (self.directory / "apache.out").open("ab") as out:
            self._process = subprocess.Popen(
                [*self._prefix, APACHE, "-f", str(self.directory / "apache.conf"), "-D", "FOREGROUND"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            poll(self._accepts, 10.0, f"apache2 listens at {self.host} port {self.tls_port}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            end(self._process)
            self._process = None

    def spoil(self) -> None:
        """From now on 503, whatever is asked; nobody notices the reload."""
        assert self._process is not None
        config = self.directory / "apache.conf"
        config.write_text(config.read_text().replace("Redirect 503 /sick", "RedirectMatch 503 .*"))
        self._process.send_signal(signal.SIGUSR1)

    def _accepts(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"apache2 ended at its start:\n{(self.directory / 'apache.out').read_text()}")
        if self._prefix:  # in another namespace: its own word must do
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
