"""The doctor's looks at our daemons, at Nagios and at the SMS gateways: connections and permissions."""

import contextlib
import errno
import grp
import os
import re
import shlex
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from check_failover.admin.finding import Finding, Scene, absent, access, describe, how_to, journal, unusable, user_of
from check_failover.admin.objects import SUFFIXES
from check_failover.config import Config
from check_failover.control import ControlError
from check_failover.model import Service
from check_failover.sms import GATEWAYS, GatewayError
from check_failover.transports.core_state import QUESTIONS, CoreQuestion, status_file

SETTINGS = ["check_external_commands", "accept_passive_service_checks", "enable_event_handlers"]
SETTINGS += ["check_service_freshness"]
UNSAFE = "`~$&|'\"<>"  # in a macro that becomes part of a shell's command line
LOG_TAIL, LOG_LINES = 1 << 20, 200  # bytes of nagios.log; lines after a handler's start
ASK_LIMIT, ASK_ALL_LIMIT = 3.0, 10.0  # seconds for the core's answer about one service, and about all
HANDLERS = {
    "primary": "check_failover_event",
    "fail-back": "check_failover_event_fail_back",
    "drill": "check_failover_event_drill",
}


def daemons(scene: Scene) -> Iterator[Finding]:
    controller = scene.config.controller
    for name, daemon, path in (
        ("failover-redirector", scene.redirector, controller.redirector_socket),
        ("failover-sniffer", scene.sniffer, controller.sniffer_socket),
    ):
        if daemon.status is None:
            found, place = f"does not answer: {daemon.away}", Path(os.path.realpath(path))
            if _closed(place.parent, os.X_OK) or _closed(place, os.W_OK):
                yield Finding("unknown", name, found, "run it as root, or as a member of the socket's group")
            else:
                do = how_to("order", verb="restart" if daemon.hangs else "start", daemon=name)
                yield Finding("missing", name, found, do)
        else:
            runs = f"runs as {daemon.user.name}" if daemon.user else "runs"
            yield Finding("ok", name, f"answers, {runs}, its socket is {describe(path.stat())}")
    if scene.redirector.status is not None:
        do = f"{how_to('member', group='check_failover', user=controller.core_user)}, and restart the core"
        yield from access("event handler", user_of(controller.core_user), controller.redirector_socket, os.W_OK, do)
    if user_of(controller.core_user) is None:
        do = "set [controller] core_user to the user that Nagios or Icinga runs as"
        yield Finding("missing", "core_user", f"no user {controller.core_user} here: the core can order nothing", do)
    try:
        people = grp.getgrnam(controller.operators).gr_mem
        more = ", ".join(people) or f"nobody else ({how_to('member', group=controller.operators, user='YOU')})"
        yield Finding("ok", "operators", f"may fail back: root and {more}")
    except KeyError:
        do = how_to("group", group=controller.operators)
        yield Finding("warning", "operators", f"no group {controller.operators}: only root may fail back", do)


def _closed(path: Path, mode: int) -> bool:
    return os.access(path, os.F_OK) and not os.access(path, mode)


def servers(scene: Scene) -> Iterator[Finding]:
    """The sniffer's last probe of each standby, and whether the sniffer is blind."""
    if scene.sniffer.status is None:
        yield Finding("unknown", "standby", "failover-sniffer is away", "start it first")
        return
    for service in scene.config.services:
        status = scene.sniffer.status.get(service.name)
        about = f"{service.name} standby"
        if status is None:
            do = how_to("order", verb="restart", daemon="failover-sniffer")
            yield Finding("missing", service.name, "unknown to failover-sniffer", do)
            continue
        if status["blind"]:
            yield Finding("missing", f"{service.name} sniffer", f"blind: {status['blind']}", how_to("blind"))
        health = status["standby"]
        if health["ok"] is None:
            yield Finding("warning", about, health["text"], how_to("not probed"))
        elif health["ok"]:
            yield Finding("ok", about, f"passed its last probe: {health['text']}")
        else:
            yield Finding("missing", about, f"fails its probe: {health['text']}", f"mend {service.standby}")


def command_file(scene: Scene) -> Iterator[Finding]:
    """Whether results reach a core on this machine."""
    if scene.config.monitoring["transport"] != "command_file":
        return
    path = Path(scene.config.monitoring["command_file"])
    do = "start Nagios, see [monitoring] command_file"
    try:
        mode = path.stat()
        if not stat.S_ISFIFO(mode.st_mode):
            yield Finding("missing", "command file", f"{path} is no FIFO", f"remove it and {do}")
            return
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        yield Finding("ok", "command file", f"{path} is a FIFO and read by the core")
    except OSError as error:
        if error.errno == errno.ENXIO:
            error.strerror = "nobody reads it"
        yield unusable("command file", path, error, do)
        return
    for daemon in (scene.redirector, scene.sniffer):
        if daemon.status is not None:
            yield from access("command file", daemon.user, path, os.W_OK, how_to("reach"))


def nagios(scene: Scene) -> Iterator[Finding]:
    """nagios.cfg and the objects of a core on this machine."""
    path = scene.nagios_cfg
    if scene.config.monitoring["transport"] != "command_file":
        return
    try:
        path.open("rb").close()
    except OSError as error:
        yield unusable("nagios.cfg", path, error, "say where it is: --nagios-cfg PATH")
        return
    from pynag.Parsers import config as parser

    try:
        parsed = parser(cfg_file=str(path))
        parsed.parse()
    except Exception as error:  # pynag's exceptions for a damaged file are not documented
        said = " ".join(str(error).split()) or type(error).__name__
        yield Finding("unknown", "nagios.cfg", f"{path}: pynag cannot read it: {said}", f"{how_to('verify')} {path}")
        return
    values = dict(parsed.maincfg_values)
    yield from _settings(scene.config, path, values)
    defined: dict[object, list[dict[str, Any]]] = {}
    for found in parsed.data.get("all_service", []):
        defined.setdefault(found.get("service_description"), []).append(found)
    for service in scene.config.services:
        yield from _objects(service, defined)
    try:
        resources = parsed.get_resources() or ()
    except OSError as error:
        yield Finding("unknown", "event handler", f"{error.filename}: {error.strerror}", "run it as root")
        return
    yield from _handlers(scene.config, parsed.data.get("all_command", []), resources)
    yield from _last_run(Path(values.get("log_file", "")))


def _settings(config: Config, path: Path, values: Mapping[str, str]) -> Iterator[Finding]:
    """The core's settings. A missing one has the core's default, which is 1 for all of these."""
    off = [name for name in SETTINGS if str(values.get(name, "1")).strip() == "0"]
    for name in off:
        yield Finding("missing", "nagios.cfg", f"{name}=0", f"set {name}=1 in {path} and restart Nagios")
    if not off:
        yield Finding("ok", "nagios.cfg", "takes passive results, runs event handlers, checks freshness")
    lets = [char for char in UNSAFE if char not in str(values.get("illegal_macro_output_chars", ""))]
    if lets:
        found = f"illegal_macro_output_chars lets {' '.join(lets)} pass: a server's text could run a command here"
        yield Finding("warning", "nagios.cfg", found, f"illegal_macro_output_chars={UNSAFE} in {path}, restart Nagios")
    ours, theirs = config.monitoring["command_file"], values.get("command_file")
    if theirs is not None and Path(theirs) != Path(ours):
        yield Finding("missing", "command file", f"{path} says {theirs}, not {ours}", "set [monitoring] command_file")


def _objects(service: Service, objects: Mapping[object, list[dict[str, Any]]]) -> Iterator[Finding]:
    def on_host(found: Mapping[str, Any]) -> bool:
        hosts = [name.strip() for name in str(found.get("host_name", "")).split(",")]
        return service.host in hosts or "hostgroup_name" in found

    lost = []
    for suffix in (*SUFFIXES, *(["sync"] if service.sync else [])):
        name = f"{service.name} {suffix}"
        found = next(filter(on_host, objects.get(name, ())), None)
        if found is None:
            lost.append(name)
        elif suffix in HANDLERS and (
            not str(found.get("event_handler", "")).startswith(HANDLERS[suffix])
            or str(found.get("event_handler_enabled", "1")) == "0"
        ):
            do = f"event_handler {HANDLERS[suffix]}!{service.name}, event_handler_enabled 1"
            yield Finding("missing", name, "has no event handler of ours, or it is off", do)
    if lost:
        yield Finding("missing", f"{service.name} in Nagios", f"not defined: {', '.join(lost)}", how_to("objects"))
    else:
        yield Finding("ok", f"{service.name} in Nagios", f"its services are defined for {service.host}")


def _handlers(
    config: Config, commands: list[dict[str, Any]], resources: Iterable[tuple[str, str]]
) -> Iterator[Finding]:
    """Whether the core's user may run the programs of the event handlers' commands."""
    ours = [c for c in commands if str(c.get("command_name")).startswith(HANDLERS["primary"])]
    if not ours:
        yield Finding("missing", "event handler", f"no command {HANDLERS['primary']}", "failoverctl nagios-config")
    programs = dict.fromkeys(_program(str(command.get("command_line", "")), resources) for command in ours)
    user, do = config.controller.core_user, f"make install, and let {config.controller.core_user} run it"
    for program in programs:
        macro = re.match(r"\$USER\d+\$", program)
        if macro and resources:
            yield Finding("missing", "event handler", f"{program}: no {macro[0]}", "define it in resource_file")
        elif not program.startswith("/"):
            yield Finding("unknown", "event handler", f"where {program or 'it'} is", how_to("resources"))
        else:
            bad = list(access("event handler", user_of(user), Path(program), os.R_OK | os.X_OK, do))
            if not bad and (interpreter := _interpreter(Path(program))):
                bad = list(access(f"interpreter of {program}", user_of(user), interpreter, os.X_OK, do))
            yield from bad or [Finding("ok", "event handler", f"{user} may run {program}")]


def _program(line: str, resources: Iterable[tuple[str, str]]) -> str:
    for name, value in resources:
        line = line.replace(str(name), str(value))
    try:
        return shlex.split(line)[0]
    except (ValueError, IndexError):
        return ""


def _interpreter(program: Path) -> Path | None:
    """What the first line names (execve(2)); None: nothing, or this user cannot look."""
    try:
        with program.open("rb") as file:
            words = file.readline(256).removeprefix(b"#!").split() if file.peek(2)[:2] == b"#!" else []
    except OSError:
        return None
    return Path(os.fsdecode(words[0])) if words else None


def _last_run(log: Path) -> Iterator[Finding]:
    """How the last run of a handler ended. Nagios logs its start, and without a name a failure that follows."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        yield Finding("unknown", "event handler", f"{log}: {error.strerror}", "run it as root")
        return
    starts = [n for n, line in enumerate(lines) if re.search(rf" EVENT HANDLER: .*;{HANDLERS['primary']}", line)]
    after = lines[starts[-1] : starts[-1] + LOG_LINES] if starts else []
    for number, line in enumerate(after):
        if failed := re.search(r"EVENTHANDLER job .* (exited with return code \d+|timed out after \S+)$", line):
            said = "".join(re.findall(r"line 01(: .*)", "\n".join(after[number : number + 4]))[:1])
            about = f"{log}: after its last start, {after[0].split(']')[0]}], a handler {failed[1]}{said}"
            yield Finding("warning", "event handler", about, "mend it, then failoverctl drill NAME")
            return


def settings(scene: Scene) -> Iterator[Finding]:
    """What is switched off in the running core, which keeps it over restarts, and whether the sniffer can know it."""
    options = {**scene.config.monitoring, "nagios_cfg": str(scene.nagios_cfg)}
    if options["transport"] not in QUESTIONS:
        return
    question, end = CoreQuestion(options), time.monotonic() + ASK_ALL_LIMIT
    for service in scene.config.services:
        limit = min(ASK_LIMIT, end - time.monotonic())
        name, state = f"{service.name} primary", question.ask(service, limit) if limit > 0 else None
        if state is None:
            if options["transport"] == "icinga2":
                yield Finding("unknown", name, "whether its event handler is switched on", how_to("ask Icinga"))
            continue
        if not state.service_handler:
            do = f"switch it on there (Nagios: ENABLE_SVC_EVENT_HANDLER;{service.host};{name})"
            yield Finding("missing", name, "its event handler is switched off in the core", do)
        if not state.handlers:
            yield Finding("missing", name, "all event handlers are switched off in the core", how_to("handlers on"))
    with contextlib.suppress(OSError, LookupError):  # the look at Nagios says why
        path = status_file(scene.nagios_cfg)
        if options["transport"] == "command_file" and scene.sniffer.status is not None and path.exists():
            for found in access("status_file", scene.sniffer.user, path, os.R_OK, how_to("reach")):
                yield replace(found, level="warning")  # downtimes are then not known to the sniffer's own orders


def orders(scene: Scene) -> Iterator[Finding]:
    """Whether the core has ever run the handler: the journal has an order from its user, or a drill."""
    core = user_of(scene.config.controller.core_user)
    if scene.redirector.status is None or core is None:
        return
    try:
        entries = journal(scene.config, timeout=5.0)
    except ControlError as error:
        yield Finding("unknown", "orders", str(error), "see failover-redirector's log")
        return
    last = {}
    for entry in entries:
        callers = entry.peer, (entry.parts or {}).get("handler")  # of the order, or of the handler in a drill
        if any(caller and caller.uid == core.uid for caller in callers):
            last[entry.service] = f"the core ran it, last: {entry.line}"
    for service in scene.config.services:
        about, do = f"{service.name} event handler", f"failoverctl drill {service.name}"
        if service.name in last:
            yield Finding("ok", about, last[service.name])
        else:
            yield Finding("warning", about, "the core has never run it (no journal entry)", do)


def sms(scene: Scene) -> Iterator[Finding]:
    """Whether each gateway would accept a text."""
    first = scene.config.sms
    for about, options in (("SMS gateway", first), ("second SMS gateway", (first or {}).get("second"))):
        if options is None:
            continue
        secret = options.get("password_file")
        if secret is not None and absent(secret):
            yield Finding("missing", about, f"{secret} is not there", "write the gateway's password into it")
        elif secret is not None and not os.access(secret, os.R_OK):
            yield Finding("unknown", about, f"{secret} cannot be read", "run it as root")
        else:
            try:
                yield Finding("ok", about, GATEWAYS[options["gateway"]](options).answers())
            except GatewayError as error:
                yield Finding("warning", about, str(error), "texts wait in the spool until it answers")
