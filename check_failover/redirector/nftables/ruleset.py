"""The text of our nftables table for a config: what ``redirect.py`` loads in one transaction. Pure.

The rules are in files: ``shared.nft`` and ``base.nft`` have what is the same for each config, ``service.nft`` and
``elements.nft`` what belongs to each service. In them a word with a $ is a number or a name of this module.

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
from pathlib import Path
from string import Template

from check_failover.model import MARK_POKE, MARK_REPLAY, MARK_RESCUE, Service, Target

TABLE = "inet check_failover"
CT_MASK = 0xFFC00000
FINISHED, ON_STANDBY = 1 << 21, 1 << 20
CT_SERVER = CT_MASK | ON_STANDBY
CT_REST = 0x000FFFFF
MOST_SERVICES = 1023
_TCP_DEMAND = "tcp flags & (syn | psh | fin) != 0 "  # a bare ACK demands nothing: counting it gives false alarms
_TCP_ANSWER = "tcp flags & (psh | fin) != 0 "  # the kernel of a server that hangs still sends SYN-ACKs
_SERVER_SETS = ("dead", "refusing")  # of ct marks; a change of the config leaves them
_SHARED = "shared"  # stands for a service's name in the signature of what all services share


def ruleset(
    services: Iterable[Service], marks: Mapping[str, int], targets: Mapping[str, Target], clients: Sequence[str] = ()
) -> str:
    """The whole table, ready to replace an older one: ``add`` makes ``delete`` safe when there is none.

    ``clients``: the clients' interfaces. A packet that comes in there with a server's address is forged and dropped,
    before conntrack takes it for an answer, unless the route to that server uses the interface too.
    """
    services = tuple(services)
    body = _SHARED_PARTS + "".join(_of(_SERVICE, one, marks[one.name]) for one in services)
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
        _of(_SERVICE, service, marks[service.name]) + f"  chain {names[service.name]} {{ }}\n" for service in changed
    )
    return f"{flushed}{removed}table {TABLE} {{\n{added}}}\n{_elements(services, marks, targets)}"


def signatures(services: Iterable[Service], marks: Mapping[str, int], clients: Sequence[str] = ()) -> dict[str, str]:
    """Service -> name of the empty chain that marks its objects as made for this config, whatever its target."""
    texts = {service.name: _of(_SERVICE + _ELEMENTS, service, marks[service.name]) for service in services}
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
    text = _SHARED_PARTS + _base(clients) + "".join(_of(_SERVICE, one, marks[one.name]) for one in services)
    chains = re.findall(r"  chain (\w+) {\n((?:    .*\n)*)", text)
    return {name: sum(not rule.startswith("    type ") for rule in rules.splitlines()) for name, rules in chains}


def _of(kind: str, service: Service, mark: int, target: Target | None = None) -> str:
    """``service.nft`` or ``elements.nft`` for one service and its target."""
    tcp, nat, six = service.protocol == "tcp", service.source_nat is not None, service.address.family == 6
    has = {"": True, "tcp": tcp, "nat": nat, "direct": tcp and not nat, "standby": target is Target.STANDBY}
    lines = (line.partition("  #") for line in kind.splitlines())
    return Template("".join(f"{line}\n" for line, _, only in lines if has[only])).substitute(
        NAME=service.name,
        PROTO=service.protocol,
        FAMILY="ipv6" if six else "ipv4",
        IP="ip6" if six else "ip",
        V=service.address.family,
        DEMAND=_TCP_DEMAND if tcp else "",
        ANSWER=_TCP_ANSWER if tcp else "",
        SERVICE=service.address,
        ADDRESS=service.address.address,
        PORT=service.address.port,
        SOURCE=service.source_nat,
        TO_PRIMARY=f"{mark:#x}",
        TO_STANDBY=f"{mark | ON_STANDBY:#x}",
        PRIMARY=service.primary,
        PRIMARY_ADDRESS=service.primary.address,
        PRIMARY_PORT=service.primary.port,
        STANDBY=service.standby,
        STANDBY_ADDRESS=service.standby.address,
        STANDBY_PORT=service.standby.port,
    )


def _read(name: str) -> str:
    """A file of rules beside this module, without its comments, with our numbers."""
    numbers = {"FINISHED": FINISHED, "SERVER": CT_SERVER, "MASK": CT_MASK, "REST": CT_REST}
    numbers |= {"POKE": MARK_POKE, "REPLAY": MARK_REPLAY, "RESCUE": MARK_RESCUE}
    lines = Path(__file__).with_name(name).read_text("utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return Template(text).safe_substitute({name: f"{number:#x}" for name, number in numbers.items()})


_SHARED_PARTS, _BASE, _SERVICE, _ELEMENTS = (_read(f"{name}.nft") for name in ("shared", "base", "service", "elements"))
# kind and name of the maps and sets that all services share
_SHARED_OBJECTS = [one for one in re.findall(r"(map|set) (\w+) {", _SHARED_PARTS) if one[1] not in _SERVER_SETS]


def _base(clients: Sequence[str]) -> str:
    """The chains that the kernel calls."""
    if not clients:
        return re.sub(r".*\$CLIENTS.*\n", "", _BASE)
    return _BASE.replace("$CLIENTS", ", ".join(f'"{name}"' for name in clients))


def _shared_elements(
    services: Iterable[Service], marks: Mapping[str, int], targets: Mapping[str, Target]
) -> dict[str, dict[str, None]]:
    """The elements of each shared map and set, each once, in order: two services may have the same server."""
    found: dict[str, dict[str, None]] = {name: {} for _kind, name in _SHARED_OBJECTS}
    for service in services:
        commands = _of(_ELEMENTS, service, marks[service.name], targets.get(service.name))
        for where, element in re.findall(r"(\w+) { (.*) }", commands):
            found[where][element] = None
    for version in (4, 6):  # a server of two services: which service address its client used is not known
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
