"""Load the config (Linux: /etc/check_failover/config.toml): parse, validate, freeze.

An error is one ``ConfigError`` line: file, path to the key, what is wrong and what the key means. ``config_shape``
applies the JSON schema; this module checks the rest (addresses, duplicates, address families). jsonschema costs 150 ms
and 11 MiB, so only programs that read the config import this module; the event handler does not.
"""

import contextlib
import ipaddress
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from check_failover import __version__, config_shape
from check_failover.model import CheckSpec, Endpoint, OneLineError, Policy, Service, SyncSpec
from check_failover.places import HERE

DEFAULT_PATH = HERE["config"]

CORE_DEADLINE = 5.0  # seconds


class ConfigError(OneLineError):
    """One line for the administrator: what, where, what to do."""


@dataclass(frozen=True, slots=True)
class Controller:
    """``[controller]``. Users and groups are names; the program that uses one looks it up."""

    redirect: str = "nftables"
    client_interfaces: tuple[str, ...] = ()
    run_dir: Path = Path(HERE["run_dir"])
    state_dir: Path = Path(HERE["state_dir"])
    operators: str = "failover-operators"
    core_user: str = "nagios"
    sniffer_user: str = "failover-sniffer"
    pair_user: str = "failover-pair"
    redirector_user: str = "failover-redirector"
    peer: str | None = None  # the other controller, for ssh
    peer_ssh_config: Path | None = None
    ipfilter: Mapping[str, Any] = field(default_factory=dict)  # paths that differ from the platform's defaults

    @property
    def redirector_socket(self) -> Path:
        return self.run_dir / "redirector.sock"

    @property
    def sniffer_socket(self) -> Path:
        return self.run_dir / "sniffer.sock"


@dataclass(frozen=True, slots=True)
class Config:
    """A validated config. ``monitoring`` and ``sms`` contain the options of the transport and of the gateway."""

    path: Path
    controller: Controller
    services: tuple[Service, ...]
    monitoring: Mapping[str, Any]
    sms: Mapping[str, Any] | None
    digest: str = ""  # of the file, and of what it was validated by

    def service(self, name: str) -> Service:
        """The service of that name. Raises ConfigError with the names of the configured services."""
        for service in self.services:
            if service.name == name:
                return service
        known = ", ".join(s.name for s in self.services)
        raise ConfigError(f"{self.path}: no service {name!r}; configured are: {known}")


def load(path: str | Path = DEFAULT_PATH, *, quick: bool = False) -> Config:
    """Read and validate a config file. Raises ConfigError.

    ``quick``: without jsonschema, if the redirector validated this very file (``publish``).
    """
    import hashlib  # its OpenSSL costs 3 ms, and many checks need only ``run_dir``

    path = Path(path)
    data, raw = _parse(path)
    digest = hashlib.sha256(b"\0".join((data, __version__.encode(), config_shape.text()))).hexdigest()
    if not (quick and _published(path, raw, digest)) and (wrong := config_shape.problem(raw)) is not None:
        raise ConfigError(f"{path}: {wrong}")
    return replace(_freeze(path, raw), digest=digest)


def publish(config: Config) -> None:
    """Note beside the redirector's socket that this config is valid. Only the redirector calls this."""
    path = _note(config.controller.run_dir)
    with contextlib.suppress(OSError):  # then each check validates the config itself
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as note:
            note.write(config.digest)


def _published(path: Path, raw: Mapping[str, Any], digest: str) -> bool:
    """Whether the owner of the redirector's directory, or root, noted this digest where nobody else can write."""
    try:
        path = _note(_run_dir(path, raw))
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as note:
            about = os.fstat(note.fileno())
            safe = about.st_uid in (0, path.parent.stat().st_uid) and not about.st_mode & 0o022
            return safe and stat.S_ISREG(about.st_mode) and note.read(len(digest) + 1) == digest
    except (ConfigError, OSError, ValueError):
        return False


def _note(run_dir: Path) -> Path:
    return (run_dir / "redirector.sock").resolve().with_name("config.valid")


def run_dir(path: str | Path) -> Path:
    """Where the sockets are by a config file, which is not validated. Raises ConfigError."""
    return _run_dir(path, _parse(Path(path))[1])


def _run_dir(path: str | Path, raw: Mapping[str, Any]) -> Path:
    table = raw.get("controller", {})
    found = table.get("run_dir", HERE["run_dir"]) if isinstance(table, dict) else None
    if not isinstance(found, str) or not found.startswith("/"):
        raise ConfigError(f"{path}: $.controller.run_dir: want an absolute path")
    return Path(found)


def _parse(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The file's bytes and its TOML. Raises ConfigError."""
    try:
        data = path.read_bytes()
        return data, tomllib.loads(data.decode(), parse_float=_finite)
    except OSError as error:
        hint = ": is this user in the group check_failover?" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{path}: cannot read: {error.strerror}{hint}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _finite(text: str) -> float:
    """A TOML float. TOML allows nan and inf, which would pass every limit, so they raise ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}: times and shares must be finite numbers")
    return value


def _freeze(path: Path, raw: dict[str, Any]) -> Config:
    controller = dict(raw.get("controller", {}))
    interfaces = controller.pop("client_interface", [])
    for key in ("run_dir", "state_dir", "peer_ssh_config"):
        if key in controller:
            controller[key] = Path(controller[key])
    services = tuple(_service(path, index, table) for index, table in enumerate(raw["service"]))
    _refuse_duplicates(path, services)
    for index, service in enumerate(services):
        if controller.get("redirect") == "ipfilter" and service.policy.drain_deadline is not None:
            where = f"{path}: $.service[{index}].policy.drain_deadline"
            raise ConfigError(f"{where}: ipfilter cannot cut what a drain leaves behind")
    return Config(
        path=path,
        controller=Controller(
            client_interfaces=(interfaces,) if isinstance(interfaces, str) else tuple(interfaces), **controller
        ),
        services=services,
        monitoring=_monitoring(path, raw.get("monitoring", {})),
        sms=raw.get("sms"),
    )


def fixed(config: Config) -> tuple[object, ...]:
    """What a running daemon cannot change: places, sockets, users, and the way to the core."""
    return replace(config.controller, client_interfaces=()), config.monitoring


def _monitoring(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """``[monitoring]`` with the defaults filled in."""
    options = {
        "transport": "command_file",
        "command_file": HERE["command_file"],
        "core_deadline": CORE_DEADLINE,
        "nagios_cfg": HERE["nagios_cfg"],
    } | table
    names, urls = options.get("server_name"), options.get("url")
    if isinstance(names, list) and (not isinstance(urls, list) or len(urls) != len(names)):
        raise ConfigError(f"{path}: $.monitoring.server_name: give one name, or a list as long as that of url")
    return options


def _service(path: Path, index: int, table: dict[str, Any]) -> Service:
    where = f"{path}: $.service[{index}]"
    port = table["port"]
    address = _endpoint(f"{where}.address", table["address"], port)
    if address.port != port:
        raise ConfigError(f"{where}.address: the service address has no port of its own; use port = {address.port}")
    primary = _endpoint(f"{where}.primary", table["primary"], port)
    standby = _endpoint(f"{where}.standby", table["standby"], port)
    for key, server in (("primary", primary), ("standby", standby)):
        if server.family != address.family:
            raise ConfigError(f"{where}.{key}: {server} is not IPv{address.family} as the service address {address} is")
    if primary == standby:
        raise ConfigError(f"{where}.standby: the same as the primary ({primary}); there is nothing to fail over to")
    if address in (primary, standby):
        raise ConfigError(f"{where}.address: the service address must not be a server's own ({address})")
    if table["protocol"] == "udp" and table["check"]["type"] in ("ldap", "http"):
        raise ConfigError(f"{where}.protocol: {table['check']['type']} is spoken over tcp, not udp")
    servers = {primary.address, standby.address}
    source_nat = _without_port(f"{where}.source_nat", table.get("source_nat"), address)
    if source_nat in servers:
        raise ConfigError(f"{where}.source_nat: {source_nat} is a server's own address; give the controller's")
    test_client = _without_port(f"{where}.test_client", table.get("test_client"), address)
    if test_client in servers | {address.address}:
        raise ConfigError(
            f"{where}.test_client: {test_client} is a server's or the service's own address; give one that no machine "
            "uses"
        )
    sync = _sync(where, table["sync"], primary, standby) if "sync" in table else None
    same = {key: table[key] for key in ("name", "host", "protocol", "primary_host", "dialect") if key in table}
    return Service(
        **same,
        address=address,
        primary=primary,
        standby=standby,
        check=_check(table["check"], table["protocol"]),
        policy=_policy(table),
        source_nat=source_nat,
        sync=sync,
        test_client=test_client,
        writes=table.get("writes", "primary" if sync is not None and sync.method != "syncrepl" else "replicated"),
    )


def _without_port(where: str, text: str | None, like: Endpoint) -> str | None:
    """An address of the family of ``like``."""
    if text is None:
        return None
    found = _endpoint(where, text, like.port)
    if found.port != like.port or found.family != like.family:
        raise ConfigError(f"{where}: want one IPv{like.family} address without a port, not {text}")
    return found.address


def _check(table: dict[str, Any], protocol: str) -> CheckSpec:
    options = {key: value for key, value in table.items() if key not in ("type", "timeout")}
    if table["type"] == "dns":
        options.setdefault("transport", protocol)
    return CheckSpec(type=table["type"], options=options, timeout=float(table.get("timeout", CheckSpec("").timeout)))


def _sync(where: str, table: dict[str, Any], primary: Endpoint, standby: Endpoint) -> SyncSpec:
    """``[service.sync]``; a server's ssh target is its address by default."""
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    source = values.pop("from", "").rstrip("/")
    copy = values.pop("to", source).rstrip("/")
    for key, path in (("from", source), ("to", copy)):
        if ".." in path.split("/"):
            raise ConfigError(f"{where}.sync.{key}: {path} has a .. in it; give the real path")
    spec = SyncSpec(
        **{"primary": primary.address, "standby": standby.address} | values, source_path=source, copy_path=copy
    )
    if spec.primary == spec.standby and source == copy:
        raise ConfigError(f"{where}.sync: primary and standby are the same place ({spec.primary}:{source})")
    return spec


def _policy(table: dict[str, Any]) -> Policy:
    """The policy. Without ``[service.sync]`` the sync age is never measured, so it is no criterion then."""
    known = {f.name for f in fields(Policy)}
    values = {key: value for key, value in table.get("policy", {}).items() if key in known}
    if "sync" not in table:
        values.pop("max_sync_age", None)
    return Policy(shadow=table.get("mode") == "shadow", **values)


def _endpoint(where: str, text: str, default_port: int) -> Endpoint:
    """``10.0.0.12``, ``10.0.0.12:1389``, ``2001:db8::1`` or ``[2001:db8::1]:1389``."""
    match = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:]+):(\d+)|(.+)", text)
    host = (match and (match[1] or match[3] or match[5])) or ""
    port = (match and (match[2] or match[4])) or str(default_port)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"{where}: {text!r} is not an IP address; names are not looked up, give the number") from None
    if not 1 <= int(port) <= 65535:
        raise ConfigError(f"{where}: port {port} is not between 1 and 65535")
    if address.is_unspecified or address.is_multicast:
        raise ConfigError(f"{where}: {text} cannot be a server's or a service's address")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise ConfigError(f"{where}: {text} is an IPv4 address written as IPv6; give {address.ipv4_mapped}")
    if getattr(address, "scope_id", None):
        raise ConfigError(f"{where}: {text} has a scope; give the address without %interface")
    return Endpoint(address.compressed, int(port))


def _refuse_duplicates(path: Path, services: tuple[Service, ...]) -> None:
    first: dict[tuple[str, str], int] = {}
    for index, one in enumerate(services):
        for key, value in (("name", repr(one.name)), ("address", f"{one.protocol} {one.address}")):
            if first.setdefault((key, value), index) != index:
                raise ConfigError(f"{path}: $.service[{index}].{key}: {value} is service {first[key, value]} too")
