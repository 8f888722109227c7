"""check_failover_ldap: bind and search, as a client of the directory does (RFC 4511), with ldap3.

The probe passes when the search succeeds and returns an entry, with the configured attribute and value if any. An
empty result is a failure: a slapd that lost its database still binds.

ldap3 by default waits without limit, reads any amount, and a corrupt reply can raise any exception. Therefore the probe
puts ldap3's connection within a budget (``bounded``), and every exception is a failed probe.
"""

import contextlib
import errno
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Literal

import ldap3
from ldap3.core.exceptions import LDAPException, LDAPInvalidDnError, LDAPInvalidFilterError, LDAPSocketOpenError
from ldap3.operation.search import parse_filter
from ldap3.utils.dn import safe_dn

from check_failover.bounded import Budget, bound, securing
from check_failover.checks import ProbeError, probing, secret
from check_failover.checks.talk import server_name, tls_context
from check_failover.model import Endpoint, Probe, TooMuchError, clean

MAX_ANSWER = 4 << 20  # bytes read: one entry, with all values of one attribute
DEFAULT_FILTER = "(objectClass=*)"
_SCOPES: dict[str, Literal["BASE", "LEVEL", "SUBTREE"]] = {"base": ldap3.BASE, "one": ldap3.LEVEL, "sub": ldap3.SUBTREE}


class FailedError(Exception):
    """The server answered, but the answer is not the wanted one."""


class _Tls(ldap3.Tls):
    """Verifies with Python's ssl module: ldap3's own check also accepts the address in place of the configured name."""

    def __init__(self, context: ssl.SSLContext, name: str, budget: Budget) -> None:
        super().__init__(validate=ssl.CERT_REQUIRED)
        self._context, self._name, self._budget = securing(context, budget), name, budget

    def wrap_socket(self, connection: ldap3.Connection, do_handshake: bool = False) -> None:
        connection.socket.settimeout(self._budget.left())
        connection.socket = self._context.wrap_socket(connection.socket, server_hostname=self._name)


def probe(server: Endpoint, options: Mapping[str, object], timeout: float) -> Probe:
    """See ``checks``. Options: base, scope, filter, attribute, value, bind_dn, bind_password_file, tls, ca_file,
    server_name.
    """
    began = time.monotonic()
    _validate(options)
    budget = Budget(timeout, MAX_ANSWER)
    try:
        with connected(server, options, budget) as connection:
            text = _search(connection, options)
    except ProbeError:
        raise
    except Exception as error:  # a corrupt reply makes ldap3 raise KeyError, IndexError and others
        return Probe(False, time.monotonic() - began, why(error, budget), refused=_refused(error))
    return Probe(True, time.monotonic() - began, text)


def _validate(options: Mapping[str, object]) -> None:
    """Raise ProbeError for options that no server could answer."""
    search_filter = str(options.get("filter", DEFAULT_FILTER))
    try:
        if options["base"]:  # "" is the root DSE
            safe_dn(str(options["base"]))
        parse_filter(search_filter, None, True, False, None, False)  # type: ignore[no-untyped-call]
    except LDAPInvalidDnError as error:
        raise ProbeError(f"base: {options['base']!r} is not a DN: {error}") from None
    except LDAPInvalidFilterError as error:
        raise ProbeError(f"filter: {search_filter!r} is not a search filter: {error}") from None


def _connection(server: Endpoint, options: Mapping[str, object], budget: Budget) -> ldap3.Connection:
    security = options.get("tls", "none")
    secured = None if security == "none" else _Tls(tls_context(options), server_name(server, options), budget)
    directory = ldap3.Server(
        server.address,
        server.port,
        use_ssl=security == "ldaps",
        tls=secured,
        get_info=ldap3.NONE,
        connect_timeout=max(0.001, budget.end - time.monotonic()),
    )
    try:
        return ldap3.Connection(
            directory,
            user=str(options["bind_dn"]) if "bind_dn" in options else None,
            password=_password(options),
            client_strategy=ldap3.SYNC,
            read_only=True,
            auto_referrals=False,
        )
    except LDAPException as error:
        raise ProbeError(f"bind_dn: {error}") from None


def _password(options: Mapping[str, object]) -> str | None:
    path = options.get("bind_password_file")
    if path is None:
        if options.get("bind_dn"):
            raise ProbeError("bind_dn without bind_password_file: give the file that holds the password")
        return None
    return secret(path, "bind password")  # an empty one would bind anonymously (RFC 4513, 5.1.2)


@contextlib.contextmanager
def connected(server: Endpoint, options: Mapping[str, object], budget: Budget) -> Iterator[ldap3.Connection]:
    """Connect and bind for the time of the block, all of it within the budget. Raises any exception."""
    connection = _connection(server, options, budget)
    try:
        connection.open(read_server_info=False)
        if options.get("tls") != "ldaps":
            connection.socket = bound(connection.socket, budget)
        if options.get("tls") == "starttls" and not connection.start_tls(read_server_info=False):
            raise FailedError(f"StartTLS: {result_text(connection)}")
        if not connection.bind(read_server_info=False):
            raise FailedError(f"bind: {result_text(connection)}")
        yield connection
    finally:  # without an unbind, whose send could block; closing is enough (RFC 4511, 5.3)
        if connection.socket is not None:
            connection.socket.close()


def _search(connection: ldap3.Connection, options: Mapping[str, object]) -> str:
    attribute, value = str(options.get("attribute") or ""), options.get("value")
    connection.search(
        str(options["base"]),
        str(options.get("filter", DEFAULT_FILTER)),
        search_scope=_SCOPES[str(options.get("scope", "base"))],
        attributes=[attribute] if attribute else [ldap3.NO_ATTRIBUTES],
        size_limit=0 if attribute else 1,
    )
    entries = [row for row in connection.response or () if row.get("type") == "searchResEntry"]
    result = connection.result.get("result")
    if result != 0 and not (result == 4 and entries):  # 4, sizeLimitExceeded: we asked for one
        raise FailedError(f"search: {result_text(connection)}")
    if not entries:
        raise FailedError(f"search: no entry at {options['base']!r}")
    attributes = [item for row in entries for item in row["raw_attributes"].items()]
    found = [one for name, values in attributes if name.lower() == attribute.lower() for one in values]
    if attribute and not found:
        raise FailedError(f"no entry has the attribute {attribute}")
    if attribute and value is not None and str(value).encode() not in found:
        raise FailedError(f"{attribute} is {found[0].decode('utf-8', 'replace')[:40]!r}, expected {str(value)!r}")
    return "bind and search answered"


def result_text(connection: ldap3.Connection) -> str:
    """``busy (51)``, followed by the server's diagnostic message if there is one."""
    result = connection.result or {}
    words = str(result.get("message") or "")[:80]
    return f"{result.get('description', 'no result')} ({result.get('result')})" + (f": {words}" if words else "")


def _refused(error: BaseException) -> bool:
    return isinstance(error, LDAPSocketOpenError) and f"[Errno {errno.ECONNREFUSED}]" in str(error)


def why(error: BaseException, budget: Budget) -> str:
    """The text for a failed probe or query; ldap3 keeps of a socket's error only the text."""
    text = str(error)
    if budget.end <= time.monotonic() or isinstance(error, TimeoutError) or "timed out" in text:
        return "no answer in time"
    if isinstance(error, FailedError | TooMuchError):
        return clean(text)
    if _refused(error):
        return "connection refused"
    if certificate := re.search(r"certificate verify failed: ([^(]+)", text):
        return f"certificate not accepted: {clean(certificate[1])}"
    if number := re.search(r"\[Errno \d+\] ([^\])]+)", text):
        return clean(number[1])
    if isinstance(error, LDAPException):
        return clean(f"{type(error).__name__}: {text}")[:160]
    return "the reply makes no sense"


OPTIONS = probing.options("ldap")
check = probing.check("ldap", __doc__, probe, OPTIONS, default_port=389, needed=("base",))
