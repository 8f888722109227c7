"""The text of our nftables table for a config: what ``redirect.py`` loads in one transaction. Pure.

A packet costs the same for one service and for a thousand: each base chain looks the packet up once, a new connection
by (protocol, address, port), a later packet by its ct mark, and jumps to the chain of its service. Packets without our
mark leave at once. A change of the config replaces the objects of the services that changed and the elements of the
shared maps, in one transaction; the other services' rules, sets and counters stay.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from check_failover.model import MARK_POKE, MARK_REPLAY, MARK_RESCUE, Endpoint, Service, Target

TABLE = "inet check_failover"
CT_MASK = 0xFFF00000
CT_REST = 0xFFFFFFFF ^ CT_MASK
_TCP_DEMAND = "tcp flags & (syn | psh | fin) != 0 "  # a bare ACK demands nothing: counting it gives false alarms
_KEYS = {4: "ipv4_addr . inet_service", 6: "ipv6_addr . inet_service"}
_IP = {4: "ip", 6: "ip6"}
_SHARED = "shared"  # stands for a service's name in the signature of what all services share


@dataclass(frozen=True, slots=True)
class Part:
    """What belongs to one service: its objects' declarations, its chains (name -> rules), elements of shared maps."""

    objects: tuple[tuple[str, str, str], ...]  # kind, name, body
    chains: tuple[tuple[str, tuple[str, ...]], ...]
    elements: tuple[tuple[str, str], ...]  # shared map or set, element


def pair(endpoint: Endpoint) -> str:
    """``address . port`` as nft writes a concatenation."""
    return f"{endpoint.address} . {endpoint.port}"


def ruleset(services: Iterable[Service], marks: Mapping[str, int], targets: Mapping[str, Target]) -> str:
    """The whole table, ready to replace an older one: ``add`` makes ``delete`` safe when there is none."""
    services = tuple(services)
    body = _shared() + "".join(_body(part(one, marks[one.name], targets.get(one.name))) for one in services)
    names = "".join(f"  chain {name} {{ }}\n" for name in signatures(services, marks).values())
    return (
        f"add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{body}{names}}}\n"
        f"{_elements(services, marks)}table {TABLE} {{\n{_base()}}}\n"
    )


def update(
    gone: Iterable[str],
    changed: Iterable[Service],
    services: Iterable[Service],
    marks: Mapping[str, int],
    targets: Mapping[str, Target],
    installed: Mapping[str, str],
) -> str:
    """One transaction that replaces ``changed`` services and removes those ``gone``; the others stay as they are.

    ``services``: all of the new config; ``installed``: name -> signature chain that the table has now.
    """
    changed, services = tuple(changed), tuple(services)
    flushed = "".join(f"flush {kind} {TABLE} {name}\n" for kind, name, _ in _shared_objects())
    removed = "".join(_remove(name, installed[name]) for name in gone)
    removed += "".join(
        _remove(service.name, installed[service.name]) for service in changed if service.name in installed
    )
    names = signatures(changed, marks)
    added = "".join(
        _body(part(service, marks[service.name], targets.get(service.name))) + f"  chain {names[service.name]} {{ }}\n"
        for service in changed
    )
    return f"{flushed}{removed}table {TABLE} {{\n{added}}}\n{_elements(services, marks)}"


def signatures(services: Iterable[Service], marks: Mapping[str, int]) -> dict[str, str]:
    """Service -> name of the empty chain that marks its objects as made for this config, whatever its target."""
    texts = {service.name: repr(part(service, marks[service.name], None)) for service in services}
    texts[_SHARED] = _shared() + _base()
    return {name: f"v_{hashlib.sha256(text.encode()).hexdigest()[:16]}_{name}" for name, text in texts.items()}


def signed(chain: str) -> tuple[str, str] | None:
    """Service and signature chain of a chain's name; None for another chain."""
    parts = chain.split("_", 2)
    return (parts[2], chain) if len(parts) == 3 and parts[0] == "v" else None


def counts(services: Iterable[Service], marks: Mapping[str, int]) -> dict[str, int]:
    """Chain, shared map or shared set -> how many rules or elements it has."""
    services = tuple(services)
    found = {name: len(rules) for name, _hook, rules in _base_chains()}
    found |= {name: len(elements) for name, elements in _shared_elements(services, marks).items()}
    for service in services:
        found |= {name: len(rules) for name, rules in part(service, marks[service.name], None).chains}
    return found


def part(service: Service, mark: int, target: Target | None) -> Part:
    """The part of one service; ``target`` None: without the one element that a flip replaces."""
    name, address, version = service.name, service.address, service.address.family
    ip, proto, key = _IP[version], service.protocol, _KEYS[version]
    marked = f"ct mark set ct mark and {CT_REST:#x} or {mark:#x}"
    element = f" elements = {{ {pair(address)} : {pair(service.server(target))} }}" if target else ""
    both = ", ".join(pair(service.server(each)) for each in Target)
    objects = [
        ("map", f"target_{name}", f"type {key} : {key};{element}"),
        ("set", f"dead_{name}", f"type {key};"),
        ("set", f"withheld_{name}", f"type {key}; elements = {{ {both} }}"),
        ("set", f"drill_{name}", f"type {key.split()[0]}; flags timeout;"),
        *(("counter", f"{what}_{name}", "") for what in ("requests", "replies", "refusals")),
    ]
    chains = [
        (f"standby_{name}", (f"meta l4proto {proto} {marked} dnat {ip} to {service.standby}",)),
        (
            f"connect_{name}",
            (
                f"{ip} saddr @drill_{name} goto standby_{name}",
                f"{marked} dnat {ip} to {ip} daddr . {proto} dport map @target_{name}",
            ),
        ),
        (f"packets_{name}", tuple(_packets(service))),
    ]
    where = f"{proto} . {pair(address)}"
    elements = [
        (f"connect{version}", f"{where} : jump connect_{name}"),
        (f"rescue{version}", f"{where} : jump standby_{name}"),
        (f"services{version}", where),
        ("connections", f"{mark:#x} : jump packets_{name}"),
    ]
    if service.source_nat is not None:
        chains.append((f"source_{name}", (f"snat {ip} to {service.source_nat}",)))
        elements.append(("source", f"{mark:#x} : jump source_{name}"))
    if proto == "tcp":
        elements += [(f"servers{version}", pair(service.server(each))) for each in Target]
    return Part(tuple(objects), tuple(chains), tuple(elements))


def _packets(service: Service) -> list[str]:
    """Forwarded packets of the service's connections."""
    name, ip, proto = service.name, _IP[service.address.family], service.protocol
    demand = _TCP_DEMAND if proto == "tcp" else ""
    rules = [
        f"ct direction original {demand}counter name requests_{name}",
        f"ct direction reply {demand}counter name replies_{name}",
    ]
    if proto == "tcp":
        rules += [
            # A new connection on a port used before: no refusal, the next SYN comes after the sweep.
            f"{ip} daddr . tcp dport @dead_{name} tcp flags & (syn | ack | rst) == syn drop",
            # Stranded clients: whatever they send to the dead server is answered with a RST, until the sweep.
            f"{ip} daddr . tcp dport @dead_{name} reject with tcp reset",
            f"{ip} saddr . tcp sport @withheld_{name} tcp flags & (rst | ack) == rst | ack tcp sequence 0 "
            f"counter name refusals_{name} drop",
        ]
    return rules


def _shared_objects() -> list[tuple[str, str, str]]:
    """Kind, name and body of the maps and sets that all services share."""
    return [
        *(("map", f"connect{v}", f"type inet_proto . {_KEYS[v]} : verdict;") for v in _KEYS),
        *(("map", f"rescue{v}", f"type inet_proto . {_KEYS[v]} : verdict;") for v in _KEYS),
        *(("set", f"services{v}", f"type inet_proto . {_KEYS[v]};") for v in _KEYS),
        *(("set", f"servers{v}", f"type {_KEYS[v]};") for v in _KEYS),
        ("map", "connections", "type mark : verdict;"),
        ("map", "source", "type mark : verdict;"),
    ]


def _base_chains() -> list[tuple[str, str, list[str]]]:
    """Name, hook and rules of the chains that the kernel calls."""
    to = {v: f"meta l4proto . {_IP[v]} daddr . th dport" for v in _KEYS}
    return [
        ("prerouting", "nat hook prerouting priority dstnat - 5", [f"{to[v]} vmap @connect{v}" for v in _KEYS]),
        (
            "output",  # packets that the sniffer sends on for a client
            "nat hook output priority -105",
            [
                *(f"meta mark {MARK_RESCUE:#x} {to[v]} vmap @rescue{v}" for v in _KEYS),
                *(f"meta mark {MARK_REPLAY:#x} {to[v]} vmap @connect{v}" for v in _KEYS),
            ],
        ),
        ("postrouting", "nat hook postrouting priority srcnat - 5", [f"ct mark and {CT_MASK:#x} vmap @source"]),
        ("raw_output", "filter hook output priority raw - 5", [f"meta mark {MARK_POKE:#x} notrack"]),
        (
            "forward",
            "filter hook forward priority filter - 5",
            [
                # A late SYN-ACK, say: untranslated it would make the client reset its connection.
                *(f"ct state invalid,new {_IP[v]} saddr . tcp sport @servers{v} drop" for v in _KEYS),
                f"ct mark and {CT_MASK:#x} vmap @connections",
            ],
        ),
        (
            "input",
            "filter hook input priority filter - 5",
            # Far ahead of the window, say: our own stack would answer with a RST and end a healthy connection.
            [f"ct state invalid {to[v]} @services{v} drop" for v in _KEYS],
        ),
    ]


def _shared() -> str:
    return "".join(f"  {kind} {name} {{ {body} }}\n" for kind, name, body in _shared_objects())


def _base() -> str:
    return "".join(
        f"  chain {name} {{\n    type {hook}; policy accept;\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"
        for name, hook, lines in _base_chains()
    )


def _body(one: Part) -> str:
    objects = "".join(f"  {kind} {name} {{ {body} }}\n" for kind, name, body in one.objects)
    chains = "".join(
        f"  chain {name} {{\n" + "".join(f"    {r}\n" for r in rules) + "  }\n" for name, rules in one.chains
    )
    return objects + chains


def _shared_elements(services: Iterable[Service], marks: Mapping[str, int]) -> dict[str, dict[str, None]]:
    """The elements of each shared map and set, each once, in order: two services may have the same server."""
    found: dict[str, dict[str, None]] = {name: {} for _kind, name, _ in _shared_objects()}
    for service in services:
        for where, element in part(service, marks[service.name], None).elements:
            found[where][element] = None
    return found


def _elements(services: Iterable[Service], marks: Mapping[str, int]) -> str:
    found = _shared_elements(services, marks)
    return "".join(f"add element {TABLE} {where} {{ {', '.join(new)} }}\n" for where, new in found.items() if new)


def _remove(name: str, signature: str) -> str:
    """Commands that remove all that belongs to one service, from what uses to what is used."""
    chains = ["connect", "standby", "packets", "source"]
    objects = [("map", "target"), *(("set", kind) for kind in ("dead", "withheld", "drill"))]
    objects += [("counter", kind) for kind in ("requests", "replies", "refusals")]
    return "".join(
        [
            *(f"add chain {TABLE} {kind}_{name}\nflush chain {TABLE} {kind}_{name}\n" for kind in chains),
            *(f"delete chain {TABLE} {kind}_{name}\n" for kind in chains),
            *(f"delete {kind} {TABLE} {what}_{name}\n" for kind, what in objects),
            f"delete chain {TABLE} {signature}\n",
        ]
    )
