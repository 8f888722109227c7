"""``failoverctl``'s orders, for one service or many: ``fail-over``, ``drain``, ``fail-back``, ``hold``, ``release``.

The redirector gets one order for each service and decides it by itself. Orders that are not done are a FailedError in
the end, with the services and the reasons.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from check_failover import control
from check_failover.admin import FailedError, show
from check_failover.config import Config
from check_failover.control import ControlError, Message, UnreachableError
from check_failover.model import Service, Target, printable
from check_failover.records import ServiceStatus, service_statuses
from check_failover.rights import user_name

REPLY_TIMEOUT = 20.0  # seconds; a flip may wait for a probe of either server
PROGRESS_EVERY = 0.5  # seconds between two lines during a drain
AT_ONCE = 8  # orders, because each may wait for a probe


def fail_over(config: Config, arguments: argparse.Namespace) -> None:
    def give(service: Service, order: Message) -> str:
        reply = _ask(config, {**order, "manual": True})
        if reply["reason"] == "standby-not-probed":  # the sniffer is away: probe here
            from check_failover.checks import ProbeError, probe_function

            check = service.check
            try:
                probe = probe_function(check)(service.standby, check.options, check.timeout)
            except ProbeError as error:
                raise FailedError(f"cannot probe the standby: {error}") from None
            reply = _ask(config, {**order, "manual": True, "facts": {"standby_ok": probe.passed}})
        return _outcome(reply)

    _end(arguments.verb, *_each(config, arguments, give))


def drain(config: Config, arguments: argparse.Namespace) -> None:
    """``drain`` and ``fail-back``: give the orders and show the open connections, once or until none is left.

    Ctrl-C ends only the display.
    """
    more = {"manual": True, "deadline": arguments.deadline}
    done, failed = _each(config, arguments, lambda _, order: _outcome(_ask(config, order | more)))
    shown = ""
    while done:
        known = _statuses(config, done)
        drains = {name: found for name in done if (found := known[name].drain) is not None}
        if (now := show.drains(done, drains)) != shown:
            print(now, flush=True)
            shown = now
        if not (drains and arguments.wait):
            break
        time.sleep(PROGRESS_EVERY)
    _end(arguments.verb, done, failed)


def hold(config: Config, arguments: argparse.Namespace) -> None:
    """``hold`` and ``release``."""
    more = {"reason": vars(arguments).get("reason")}
    _end(arguments.verb, *_each(config, arguments, lambda _, order: str(_ask(config, order | more)["text"])))


def _each(
    config: Config, arguments: argparse.Namespace, give: Callable[[Service, Message], str]
) -> tuple[list[str], dict[str, str]]:
    """Give the order for each chosen service and print what is done: the names of these, and name -> why not."""
    services, failed = _chosen(config, arguments)
    by, done, gone, many = operator(), list[str](), list[str](), len(services) + len(failed) > 1

    def one(service: Service) -> str | None:
        try:
            if gone:  # else each of many orders would wait for a redirector that hangs
                raise ControlError(gone[0])
            return give(service, {"verb": arguments.verb, "service": service.name, "by": by})
        except (FailedError, ControlError) as error:
            failed[service.name] = str(error)
            gone.extend([str(error)] if isinstance(error, UnreachableError) else [])
            return None

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for service, text in zip(services, pool.map(one, services), strict=True):
            if text is not None:
                done.append(service.name)
                prefix = f"{service.name}: "
                print(printable(prefix + text.removeprefix(prefix) if many else text), flush=True)
    return done, failed


def _chosen(config: Config, arguments: argparse.Namespace) -> tuple[Sequence[Service], dict[str, str]]:
    """The services that an order is for; name -> why not, for those that it would leave on the server in question.

    Of a server: those that it serves now; for a hold or its release, all that have it.
    """
    if arguments.all or arguments.server is None:
        named = [config.service(name) for name in dict.fromkeys(arguments.names)]
        return config.services if arguments.all else named, {}
    servers = {s.name: {s.server(target).address: target for target in Target} for s in config.services}
    of = [service for service in config.services if arguments.server in servers[service.name]]
    if not of:
        known = sorted({address for each in servers.values() for address in each})
        raise FailedError(f"{arguments.server} is no server of any service; servers are: {show.shortened(known)}")
    if arguments.verb in ("hold", "release"):
        return of, {}
    leaves, other = (Target.STANDBY, "drain") if arguments.verb == "fail-back" else (Target.PRIMARY, "fail-back")
    now, why = _statuses(config), f"{arguments.server} serves as its {leaves.other}: {other} moves it"
    served = [one for one in of if one.name in now and one.server(now[one.name].target).address == arguments.server]
    if not served:
        print(f"{arguments.server} serves no service now")
    chosen = [one for one in served if now[one.name].target is leaves]
    return chosen, {one.name: why for one in served if one not in chosen}


def _end(verb: str, done: Sequence[str], failed: dict[str, str]) -> None:
    """Say how many were done. Raises FailedError if any was not."""
    total, reasons = len(done) + len(failed), dict[str, list[str]]()
    for name, why in failed.items():
        reasons.setdefault(why, []).append(name)
    if reasons:
        lines = [f"{verb}: {len(done)} of {total} done, {len(failed)} not:"] * (total > 1)
        lines += [f"  {', '.join(names)}: {why}" if lines else why for why, names in reasons.items()]
        raise FailedError("\n".join(map(printable, lines)))
    if total > 1:
        print(f"{verb}: all {total} done")


def _statuses(config: Config, names: Sequence[str] = ()) -> dict[str, ServiceStatus]:
    return service_statuses(_ask(config, {"verb": "status", **({"service": names[0]} if len(names) == 1 else {})}))


def _ask(config: Config, message: Message) -> Message:
    return control.ask(config.controller.redirector_socket, message, timeout=REPLY_TIMEOUT)


def _outcome(reply: Message) -> str:
    """The text of an outcome; a refusal is a FailedError, "already there" is not."""
    text = str(reply.get("line") or reply["text"]) if reply.get("flipped") else str(reply["text"])
    if reply.get("error") and reply["flipped"]:
        raise FailedError(f"{text}: flipped, but {reply['error']}")
    if reply.get("flipped") or reply["reason"] == "already-there":
        return text
    raise FailedError(f"refused, {reply['reason']}: {text}")


def operator() -> str:
    """The operator's user name, also behind sudo (sudo(8), SUDO_USER)."""
    if os.getuid() == 0 and "SUDO_USER" in os.environ:
        return os.environ["SUDO_USER"]
    return user_name(os.getuid())
