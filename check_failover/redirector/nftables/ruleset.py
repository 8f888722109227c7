"""The text of our nftables table for a config: what ``nftables.py`` loads in one transaction. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from check_failover.model import MARK_POKE, MARK_REPLAY, MARK_RESCUE, Endpoint, Service, Target

TABLE = "inet check_failover"
CT_MASK = 0xFFF00000
CT_REST = 0xFFFFFFFF ^ CT_MASK
_TCP_DEMAND = "tcp flags & (syn | psh | fin) != 0"  # a bare ACK demands nothing: counting it gives false alarms


def pair(endpoint: Endpoint) -> str:
    """``address . port`` as nft writes a concatenation."""
    return f"{endpoint.address} . {endpoint.port}"


def ruleset(services: Iterable[Service], marks: Mapping[str, int], targets: Mapping[str, Target]) -> str:
    """The whole table, ready to replace an older one: ``add`` makes ``delete`` safe when there is none."""
    services = tuple(services)
    body = _table(services, marks, targets)
    made_for = f"  chain {version(services, marks)} {{ }}\n"
    return f"add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{body}{made_for}}}\n"


def version(services: Iterable[Service], marks: Mapping[str, int]) -> str:
    """Name of the empty chain that marks a table as made for this config, whatever its targets."""
    return f"v_{hashlib.sha256(_table(tuple(services), marks, {}).encode()).hexdigest()[:16]}"


def count(services: Iterable[Service], marks: Mapping[str, int]) -> dict[str, int]:
    """Chain -> how many rules it has."""
    return {name: len(lines) for name, _hook, lines in _chains(tuple(services), marks)}


def _table(services: tuple[Service, ...], marks: Mapping[str, int], targets: Mapping[str, Target]) -> str:
    objects = "".join(_objects(service, targets.get(service.name)) for service in services)
    return objects + "".join(
        f"  chain {name} {{\n    type {hook}; policy accept;\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"
        for name, hook, lines in _chains(services, marks)
    )


def _chains(services: tuple[Service, ...], marks: Mapping[str, int]) -> list[tuple[str, str, list[str]]]:
    """Name, hook and rules of each."""
    return [
        (name, hook, [line for service in services for line in rules(service, marks[service.name])] + common)
        for name, hook, rules, common in (
            ("prerouting", "nat hook prerouting priority dstnat - 5", _prerouting, []),
            ("output", "nat hook output priority -105", _output, []),
            ("postrouting", "nat hook postrouting priority srcnat - 5", _postrouting, []),
            ("raw_output", "filter hook output priority raw - 5", _nothing, [f"meta mark {MARK_POKE:#x} notrack"]),
            ("forward", "filter hook forward priority filter - 5", _forward, []),
        )
    ]


def _objects(service: Service, target: Target | None) -> str:
    name = service.name
    key = "ipv6_addr . inet_service" if service.address.family == 6 else "ipv4_addr . inet_service"
    element = f" elements = {{ {pair(service.address)} : {pair(service.server(target))} }}" if target else ""
    both = ", ".join(pair(service.server(target)) for target in Target)
    return (
        f"  map target_{name} {{ type {key} : {key};{element} }}\n"
        f"  set dead_{name} {{ type {key}; }}\n"
        f"  set withheld_{name} {{ type {key}; elements = {{ {both} }} }}\n"
        f"  set drill_{name} {{ type {key.split()[0]}; flags timeout; }}\n"
        f"  counter requests_{name} {{ }}\n  counter replies_{name} {{ }}\n  counter refusals_{name} {{ }}\n"
    )


def _nothing(_service: Service, _mark: int) -> list[str]:
    return []


def _family(service: Service) -> str:
    return "ip6" if service.address.family == 6 else "ip"


def _to_service(service: Service) -> str:
    return f"{_family(service)} daddr {service.address.address} {service.protocol} dport {service.address.port}"


def _redirect(service: Service, mark: int, to: str = "") -> str:
    """Mark the connection as the service's and send it ``to`` that server, or to wherever the target is."""
    ip, proto = _family(service), service.protocol
    lookup = to or f"{ip} daddr . {proto} dport map @target_{service.name}"
    return f"ct mark set ct mark and {CT_REST:#x} or {mark:#x} dnat {ip} to {lookup}"


def _prerouting(service: Service, mark: int) -> list[str]:
    drill = f"{_family(service)} saddr @drill_{service.name} {_to_service(service)}"
    return [
        f"{drill} {_redirect(service, mark, str(service.standby))}",
        f"{_to_service(service)} {_redirect(service, mark)}",
    ]


def _output(service: Service, mark: int) -> list[str]:
    """Packets the sniffer sends on for a client: to the standby (rescue), or to wherever the target is now (replay)."""
    return [
        f"meta mark {MARK_RESCUE:#x} {_to_service(service)} {_redirect(service, mark, str(service.standby))}",
        f"meta mark {MARK_REPLAY:#x} {_to_service(service)} {_redirect(service, mark)}",
    ]


def _postrouting(service: Service, mark: int) -> list[str]:
    if service.source_nat is None:
        return []
    return [f"ct mark and {CT_MASK:#x} == {mark:#x} snat {_family(service)} to {service.source_nat}"]


def _forward(service: Service, mark: int) -> list[str]:
    name, ip, proto = service.name, _family(service), service.protocol
    ours = f"ct mark and {CT_MASK:#x} == {mark:#x}"
    demand = f"{_TCP_DEMAND} " if proto == "tcp" else ""
    rules = [
        f"{ours} ct direction original meta l4proto {proto} {demand}counter name requests_{name}",
        f"{ours} ct direction reply meta l4proto {proto} {demand}counter name replies_{name}",
    ]
    if proto == "tcp":
        rules += [
            # A new connection on a port used before: no refusal, the next SYN comes after the sweep.
            f"{ours} {ip} daddr . tcp dport @dead_{name} tcp flags & (syn | ack | rst) == syn drop",
            f"{ours} {ip} daddr . tcp dport @dead_{name} reject with tcp reset",
            f"{ours} {ip} saddr . tcp sport @withheld_{name} tcp flags & (rst | ack) == rst | ack tcp sequence 0 "
            f"counter name refusals_{name} drop",
            *(
                f"ct state invalid,new {ip} saddr {server.address} tcp sport {server.port} drop"
                for server in (service.primary, service.standby)
            ),
        ]
    return rules
