"""A private slapd: its own cn=config, an mdb database, three entries; the caller ends it.

    with Slapd(directory, "10.0.0.11", serves="primary", argv_prefix=house.argv("primary")) as slapd: ...

``serves`` is the value of the base entry's ``description``: the answer tells which server gave it. The admin (``ADMIN``
with ``PASSWORD``) may write. ``data``: where the database is, as slapd itself sees it. With ``tls`` it offers StartTLS
and LDAPS with a certificate made here (``ca_file``).
"""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Program

SLAPD, SLAPADD, LDAPMODIFY = "/usr/sbin/slapd", "/usr/sbin/slapadd", "/usr/bin/ldapmodify"
BASE = "dc=example,dc=org"
ADMIN, PASSWORD = f"cn=admin,{BASE}", "secret"

CONFIG = """\
dn: cn=config
objectClass: olcGlobal
cn: config
olcPidFile: {directory}/slapd.pid
{tls}
dn: cn=module,cn=config
objectClass: olcModuleList
cn: module
olcModulePath: /usr/lib/ldap
olcModuleLoad: back_mdb

dn: cn=schema,cn=config
objectClass: olcSchemaConfig
cn: schema

include: file:///etc/ldap/schema/core.ldif
include: file:///etc/ldap/schema/cosine.ldif
include: file:///etc/ldap/schema/inetorgperson.ldif

dn: olcDatabase=config,cn=config
objectClass: olcDatabaseConfig
olcDatabase: config
olcRootDN: cn=config
olcRootPW: {password}

dn: olcDatabase=mdb,cn=config
objectClass: olcDatabaseConfig
objectClass: olcMdbConfig
olcDatabase: mdb
olcSuffix: {base}
olcRootDN: {admin}
olcRootPW: {password}
olcDbDirectory: {data}
olcDbMaxSize: 67108864
olcDbNoSync: TRUE
olcAccess: to * by * read
"""

ENTRIES = """\
dn: {base}
objectClass: dcObject
objectClass: organization
dc: example
o: Example
description: {serves}

dn: ou=people,{base}
objectClass: organizationalUnit
ou: people

dn: cn=joe,ou=people,{base}
objectClass: inetOrgPerson
cn: joe
sn: Doe
mail: joe@example.org
"""


class Slapd(Program):
    """One server. ``stop`` and ``start`` may alternate; the data stays."""

    out = "slapd.out"

    def __init__(
        self,
        directory: Path,
        address: str,
        *,
        serves: str,
        port: int = 389,
        argv_prefix: Sequence[str] = (),
        tls: bool = False,
        more_ports: Sequence[int] = (),
        data: str | None = None,
    ) -> None:
        self.directory, self.address, self.port = directory, address, port
        self._more_ports = more_ports
        self._prefix = tuple(argv_prefix)
        (directory / "config").mkdir(parents=True)
        (directory / "data").mkdir(exist_ok=True)
        self.ca_file = directory / "cert.pem"
        self.tls = tls
        lines = ""
        if tls:
            _certificate(directory, address)
            lines = f"olcTLSCertificateFile: {self.ca_file}\nolcTLSCertificateKeyFile: {directory}/key.pem\n"
        where = data or f"{directory}/data"
        config = CONFIG.format(directory=directory, data=where, base=BASE, admin=ADMIN, password=PASSWORD, tls=lines)
        self._slapadd("-n", "0", text=config)
        self._slapadd("-q", "-b", BASE, text=ENTRIES.format(base=BASE, serves=serves))

    @property
    def url(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"ldap://{host}:{self.port}"

    def argv(self) -> list[str]:
        urls = self.url + (f" {self.url.replace('ldap:', 'ldaps:').rsplit(':', 1)[0]}:{self.port + 247}" * self.tls)
        urls += "".join(f" {self.url.rsplit(':', 1)[0]}:{port}" for port in self._more_ports)
        return [*self._prefix, SLAPD, "-d", "0", "-F", str(self.directory / "config"), "-h", urls]

    def serves(self) -> bool:
        """Whether it answers a search."""
        return self.search("description").returncode == 0

    def _slapadd(self, *options: str, text: str) -> None:
        done = _run([*self._prefix, SLAPADD, "-F", str(self.directory / "config"), *options], text)
        assert done.returncode == 0, f"slapadd: {done.stderr}"

    def search(self, attribute: str) -> subprocess.CompletedProcess[str]:
        """ldapsearch on the base entry, by the server's own side of the network."""
        argv = ["/usr/bin/ldapsearch", "-x", "-LLL", "-o", "nettimeout=2", "-H", self.url]
        return _run([*self._prefix, *argv, "-b", BASE, "-s", "base", "(objectClass=*)", attribute])

    def modify(self, ldif: str, *, who: str = ADMIN) -> None:
        """Apply LDIF as the admin (or as ``cn=config``)."""
        argv = [*self._prefix, LDAPMODIFY, "-x", "-H", self.url, "-D", who, "-w", PASSWORD]
        done = _run(argv, textwrap.dedent(ldif))
        assert done.returncode == 0, f"ldapmodify: {done.stdout}{done.stderr}"

    def provide(self) -> None:
        """Let consumers follow it (syncprov, slapo-syncprov(5))."""
        self.modify(
            "dn: cn=module{0},cn=config\nchangetype: modify\nadd: olcModuleLoad\nolcModuleLoad: syncprov\n",
            who="cn=config",
        )
        overlay = "dn: olcOverlay=syncprov,olcDatabase={1}mdb,cn=config\nchangetype: add\n"
        self.modify(f"{overlay}objectClass: olcSyncProvConfig\nolcOverlay: syncprov\n", who="cn=config")

    def follow(self, provider: str) -> None:
        """Be a consumer of the server at that URL: syncrepl, refreshAndPersist (slapd-config(5))."""
        how = f'rid=1 provider={provider} type=refreshAndPersist retry="1 +" searchbase="{BASE}" bindmethod=simple'
        change = "dn: olcDatabase={1}mdb,cn=config\nchangetype: modify\nadd: olcSyncrepl\n"
        self.modify(f'{change}olcSyncrepl: {how} binddn="{ADMIN}" credentials={PASSWORD}\n', who="cn=config")

    def restrict(self, operation: str | None) -> None:
        """Have it refuse an operation with unwillingToPerform (olcRestrict); None: none. Works while it runs."""
        how = f"replace: olcRestrict\nolcRestrict: {operation}\n" if operation else "delete: olcRestrict\n"
        self.modify(f"dn: olcDatabase={{1}}mdb,cn=config\nchangetype: modify\n{how}", who="cn=config")


def _certificate(directory: Path, address: str) -> None:
    """A self-signed certificate for the address, which is its own CA."""
    argv = ["/usr/bin/openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ldap.test"]
    argv += ["-addext", f"subjectAltName=IP:{address},DNS:ldap.test", "-out", str(directory / "cert.pem")]
    done = _run([*argv, "-keyout", str(directory / "key.pem")])
    assert done.returncode == 0, done.stderr


def _run(argv: Sequence[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, input=text, capture_output=True, text=True, timeout=30, check=False, env=os.environ | {"LDAPNOINIT": "1"}
    )
