"""What a message to the redirector's socket says: its fields, checked; RequestRefusedError names a wrong one. Pure."""

from dataclasses import replace

from check_failover.control import Message
from check_failover.listening import RequestRefusedError
from check_failover.model import Facts, Service, Target, printable
from check_failover.records import JournalEntry, RecordError, from_json, to_json
from check_failover.redirector.state import ServiceState, parsed

LONGEST_DRAIN = 1e9  # seconds


def names(message: Message) -> list[object]:
    """The services that are asked for."""
    found = message.get("services")
    return found if isinstance(found, list) else []


def of_primary(service: Service, host: str, description: str) -> bool:
    """Whether the core's object represents that service's primary: its host, or "NAME primary"."""
    primary = host == service.host and description == f"{service.name} primary"
    return primary if description else host in (service.host, service.primary_host)


def answer(entry: JournalEntry) -> Message:
    """What came of an order."""
    keys, found = ("flipped", "reason", "text", "line", "id", "took", "left", "error"), to_json(entry)
    return {key: found[key] for key in keys if key in found}


def facts(message: Message) -> Facts:
    """The facts of an order: as fields (sniffer), or as perfdata (the core's handler)."""
    raw = message.get("facts")
    if isinstance(raw, dict):
        try:
            return from_json(Facts, raw)
        except RecordError as error:
            raise RequestRefusedError(f"facts: {error}") from None
    return replace(Facts.parse(str(message.get("perfdata") or "")), downtime=bool(message.get("downtime")))


def decision(message: Message) -> str:
    """What a person decided about the data of both servers, by failover-sync."""
    try:
        source, other = Target(message["source"]), Target(message["source"]).other
        did = {
            "take": f"failover-sync --take {source}: the {source}'s data replaces the {other}'s",
            "merge": f"failover-sync --merge: the {source}'s data with the {other}'s changes replaces the {other}'s",
        }[message["run"]]
    except (ValueError, KeyError, TypeError):
        text = "decided: want run (take or merge) and source (primary or standby)"
        raise RequestRefusedError(text) from None
    kept = words(message.get("kept") or "")[:500]
    return f"{did}, " + (f"which is kept: {kept}" if kept else "which had none")


def states(message: Message) -> dict[str, ServiceState]:
    """The other controller's states."""
    try:
        return {name: parsed(raw) for name, raw in message["state"].items()}
    except (RecordError, KeyError, AttributeError):
        text = "follow: not the state of a redirector: do both controllers run the same version?"
        raise RequestRefusedError(text) from None


def deadline(service: Service, message: Message) -> float | None:
    """Seconds until a drain cuts open connections: the order's own, or the policy's."""
    seconds = message.get("deadline")
    if seconds is None:
        return service.policy.drain_deadline
    if not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_DRAIN:
        raise RequestRefusedError(f"deadline: want a number of seconds, 0 to {LONGEST_DRAIN:.0f}")
    return float(seconds)


def words(text: object) -> str:
    """Free text as one line without control characters: journal, results of the core and terminals show it."""
    return " ".join(printable(str(text)).split())


def client(message: Message) -> tuple[str, int]:
    """Address and port of a client."""
    address, port = message.get("client"), message.get("port")
    if not isinstance(address, str) or not isinstance(port, int) or not 0 < port < 65536:
        raise RequestRefusedError("forget: want client (an IP address) and port")
    return address, port
