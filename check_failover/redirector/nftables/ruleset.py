"""The text of our nftables table for a config: what ``redirect.py`` loads in one transaction. Pure.

``shared.nft`` and ``base.nft`` have what is the same for each config; this module makes what belongs to a service.

A packet costs the same for one service and for a thousand: each base chain looks the packet up once, a new connection
by (protocol, address, port), a later packet by its ct mark, and jumps to the chain of its service. Packets without our
mark leave at once. A change of the config replaces the objects of the services that changed and the elements of the
shared maps, in one transaction; the other services' rules, sets and counters stay.

The ct mark's upper 12 bits are ours, the lower 20 the site's own: ten bits for the service, ``FINISHED`` once the
server has ended the connection, ``ON_STANDBY`` where it goes to the standby. So the kernel itself can list or forget
one server's open connections, however many finished ones it remembers.

A connection that began through another controller, or before this one's reboot, is taken up from what the client or
the server sends next. Where that is the server, the entry's original direction is the server's (``resume_*``), and its
packets have a chain of their own, ``resumed``.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from check_failover.model import MARK_POKE, MARK_REPLAY, MARK_RESCUE, Endpoint, Service, Target

TABLE = "inet check_failover"
CT_MASK = 0xFFC00000
FINISHED, ON_STANDBY = 1 << 21, 1 << 20
CT_SERVER = CT_MASK | ON_STANDBY
CT_REST = 0x000FFFFF
MOST_SERVICES = 1023
_TCP_DEMAND = "tcp flags & (syn | psh | fin) != 0 "  # a bare ACK demands nothing: counting it gives false alarms
_KEYS = {4: "ipv4_addr . inet_service", 6: "ipv6_addr . inet_service"}
_IP = {4: "ip", 6: "ip6"}
_TO = {v: f"meta l4proto . {ip} daddr . th dport" for v, ip in _IP.items()}
_SERVER_SETS = ("dead", "refusing")  # of ct marks; a change of the config leaves them
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


def ruleset(
    services: Iterable[Service], marks: Mapping[str, int], targets: Mapping[str, Target], clients: Sequence[str] = ()
) -> str:
    """The whole table, ready to replace an older one: ``add`` makes ``delete`` safe when there is none.

    ``clients``: the clients' interfaces. A packet that comes in there with a server's address is forged and dropped,
    before conntrack takes it for an answer, unless the route to that server uses the interface too.
    """
    services = tuple(services)
    body = _SHARED_PARTS + "".join(_body(part(one, marks[one.name], None)) for one in services)
    names = "".join(f"  chain {name} {{ }}\n" for name in signatures(services, marks, clients).values())
    return (
        f"add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n{body}{names}}}\n"
        f"{_elements(services, marks, targets)}table {TABLE} {{\n{_base(clients)}}}\n"
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
    flushed = "".join(f"flush {kind} {TABLE} {name}\n" for kind, name in _SHARED_OBJECTS)
    replaced = [service.name for service in changed if service.name in installed]
    removed = "".join(_remove(name, installed[name]) for name in (*gone, *replaced))
    names = signatures(changed, marks)
    added = "".join(
        _body(part(service, marks[service.name], None)) + f"  chain {names[service.name]} {{ }}\n"
        for service in changed
    )
    return f"{flushed}{removed}table {TABLE} {{\n{added}}}\n{_elements(services, marks, targets)}"


def signatures(services: Iterable[Service], marks: Mapping[str, int], clients: Sequence[str] = ()) -> dict[str, str]:
    """Service -> name of the empty chain that marks its objects as made for this config, whatever its target."""
    texts = {service.name: repr(part(service, marks[service.name], None)) for service in services}
    texts[_SHARED] = _SHARED_PARTS + _base(clients)
    return {name: f"v_{hashlib.sha256(text.encode()).hexdigest()[:16]}_{name}" for name, text in texts.items()}


def signed(chain: str) -> tuple[str, str] | None:
    """Service and signature chain of a chain's name; None for another chain."""
    parts = chain.split("_", 2)
    return (parts[2], chain) if len(parts) == 3 and parts[0] == "v" else None


def shared_counts(services: Iterable[Service], marks: Mapping[str, int]) -> dict[str, int]:
    """Shared map or set -> how many elements it has, apart from those that a flip adds."""
    return {name: len(elements) for name, elements in _shared_elements(services, marks, {}).items()}


def counts(services: Iterable[Service], marks: Mapping[str, int], clients: Sequence[str] = ()) -> dict[str, int]:
    """Chain -> how many rules it has."""
    text = _SHARED_PARTS + _base(clients) + "".join(_body(part(one, marks[one.name], None)) for one in services)
    chains = re.findall(r"  chain (\w+) {\n((?:    .*\n)*)", text)
    return {name: sum(not rule.startswith("    type ") for rule in rules.splitlines()) for name, rules in chains}


def part(service: Service, mark: int, target: Target | None) -> Part:
    """The part of one service; ``target``: the standby has the one element that a flip adds."""
    name, address, version = service.name, service.address, service.address.family
    ip, proto, key = _IP[version], service.protocol, _KEYS[version]
    marked = f"meta l4proto {proto} ct mark set ct mark and {CT_REST:#x} or"
    objects = [
        ("set", f"drill_{name}", f"type {key.split()[0]}; flags timeout;"),
        *(("counter", f"{what}_{name}", "") for what in ("requests", "replies", "refusals")),
    ]
    chains = [
        (f"standby_{name}", (f"{marked} {mark | ON_STANDBY:#x} dnat {ip} to {service.standby}",)),
        (
            f"connect_{name}",
            (
                f"{ip} saddr @drill_{name} goto standby_{name}",
                f"{_TO[version]} @on_standby{version} goto standby_{name}",
                f"{marked} {mark:#x} dnat {ip} to {service.primary}",
            ),
        ),
        (f"packets_{name}", tuple(_packets(service))),
    ]
    where = f"{proto} . {pair(address)}"
    elements = [
        *([(f"on_standby{version}", where)] if target is Target.STANDBY else ()),
        (f"connect{version}", f"{where} : jump connect_{name}"),
        (f"rescue{version}", f"{where} : jump standby_{name}"),
        (f"services{version}", where),
        ("connections", f"{mark:#x} : jump packets_{name}"),
    ]
    if service.source_nat is not None:
        chains.append((f"source_{name}", (f"snat {ip} to {service.source_nat}",)))
        elements.append(("source", f"{mark:#x} : jump source_{name}"))
    elements += [(f"hosts{version}", service.server(each).address) for each in Target]
    if proto == "tcp":
        elements += [(f"servers{version}", pair(service.server(each))) for each in Target]
    if proto == "tcp" and service.source_nat is None:
        chains += [(f"resume_{server}_{name}", _resume(service, mark, server)) for server in Target]
        translated = f"{ip} saddr {address.address} tcp sport {address.port}"
        chains.append((f"source_{name}", (f"{translated} snat {ip} to {address}",)))
        elements.append(("source", f"{mark:#x} : jump source_{name}"))
        elements += [
            (f"resume{version}", f"{pair(service.server(each))} : jump resume_{each}_{name}") for each in Target
        ]
    return Part(tuple(objects), tuple(chains), tuple(elements))


def _resume(service: Service, mark: int, server: Target) -> tuple[str, ...]:
    """A segment of that server for a connection that conntrack does not know: the entry begins with it.

    A segment with which no entry can begin (a FIN, a RST) is only translated. The client's answer begins the entry.
    """
    version, address = service.address.family, service.address
    ip, mark = _IP[version], mark | (ON_STANDBY if server is Target.STANDBY else 0)
    left = "!=" if server is Target.STANDBY else "=="
    return (
        "tcp flags & rst != 0 tcp sequence 0 drop",  # a refusal of a new connection
        f"{ip} saddr set {address.address} tcp sport set {address.port}",
        "ct state invalid accept",
        # A server that is not the target resets its client. Only the first segment, because "new" lasts until the
        # client answers, and it answers no RST; the next one it answers with a RST, and the server knows too.
        f"ct state new ct mark and {CT_MASK:#x} == 0x0 "
        f"meta l4proto . {ip} saddr . th sport {left} @on_standby{version} tcp flags set rst",
        f"ct state new ct mark set ct mark and {CT_REST:#x} or {mark:#x} accept",
    )


def _packets(service: Service) -> list[str]:
    """Forwarded packets of the service's connections."""
    name, proto = service.name, service.protocol
    demand = _TCP_DEMAND if proto == "tcp" else ""
    rules = [
        f"ct direction original {demand}counter name requests_{name}",
        f"ct direction reply {demand}counter name replies_{name}",
    ]
    if proto == "tcp":
        rules = ["ct status & (snat | dnat) == snat goto resumed", *rules]
        rules += [
            f"ct direction original ct mark and {CT_SERVER:#x} @dead goto stranded",
            "ct direction reply tcp flags & (rst | ack) == rst | ack tcp sequence 0 "
            f"ct mark and {CT_SERVER:#x} != @refusing counter name refusals_{name} drop",
            "tcp flags & (fin | rst) != 0 goto ending",
        ]
    return rules


def _read(name: str) -> str:
    """A file of rules beside this module, without its comments, with our numbers."""
    numbers = {"FINISHED": FINISHED, "SERVER": CT_SERVER, "MASK": CT_MASK}
    numbers |= {"POKE": MARK_POKE, "REPLAY": MARK_REPLAY, "RESCUE": MARK_RESCUE}
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return Template(text).safe_substitute({name: f"{number:#x}" for name, number in numbers.items()})


_SHARED_PARTS, _BASE = _read("shared.nft"), _read("base.nft")
# kind and name of the maps and sets that all services share
_SHARED_OBJECTS = [one for one in re.findall(r"(map|set) (\w+) {", _SHARED_PARTS) if one[1] not in _SERVER_SETS]


def _chain(name: str, rules: Iterable[str]) -> str:
    return f"  chain {name} {{\n" + "".join(f"    {rule}\n" for rule in rules) + "  }\n"


def _base(clients: Sequence[str]) -> str:
    """The chains that the kernel calls."""
    if not clients:
        return re.sub(r".*\$CLIENTS.*\n", "", _BASE)
    return _BASE.replace("$CLIENTS", ", ".join(f'"{name}"' for name in clients))


def _body(one: Part) -> str:
    objects = "".join(f"  {kind} {name} {{ {body} }}\n" for kind, name, body in one.objects)
    return objects + "".join(_chain(name, rules) for name, rules in one.chains)


def _shared_elements(
    services: Iterable[Service], marks: Mapping[str, int], targets: Mapping[str, Target]
) -> dict[str, dict[str, None]]:
    """The elements of each shared map and set, each once, in order: two services may have the same server."""
    found: dict[str, dict[str, None]] = {name: {} for _kind, name in _SHARED_OBJECTS}
    for service in services:
        for where, element in part(service, marks[service.name], targets.get(service.name)).elements:
            found[where][element] = None
    for version in _KEYS:  # a server of two services: which service address its client used is not known
        resumed = found[f"resume{version}"]
        times = Counter(element.split(" : ")[0] for element in resumed)
        found[f"resume{version}"] = {element: None for element in resumed if times[element.split(" : ")[0]] == 1}
    return found


def _elements(services: Iterable[Service], marks: Mapping[str, int], targets: Mapping[str, Target]) -> str:
    found = _shared_elements(services, marks, targets)
    return "".join(f"add element {TABLE} {where} {{ {', '.join(new)} }}\n" for where, new in found.items() if new)


def _remove(name: str, signature: str) -> str:
    """Commands that remove all that belongs to one service, from what uses to what is used."""
    chains = ["connect", "standby", "packets", "source", "resume_primary", "resume_standby"]
    objects = [("set", "drill"), *(("counter", kind) for kind in ("requests", "replies", "refusals"))]
    return "".join(
        [
            *(f"add chain {TABLE} {kind}_{name}\nflush chain {TABLE} {kind}_{name}\n" for kind in chains),
            *(f"delete chain {TABLE} {kind}_{name}\n" for kind in chains),
            *(f"delete {kind} {TABLE} {what}_{name}\n" for kind, what in objects),
            f"delete chain {TABLE} {signature}\n",
        ]
    )
