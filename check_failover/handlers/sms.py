"""The notification command: composes the text, writes it into the spool, starts a sender, and is gone.

Nagios runs it for each contact of a notification; a person or a script calls it with ``--number`` and ``--text``. It
never waits for the gateway. Only when the text cannot be written down (disk full, no right) is it sent on the spot,
and the output says so. The config is parsed but not validated here: a text must not wait until a typo is mended.
"""

from __future__ import annotations

import os
import re
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from check_failover import __version__
from check_failover.handlers.arguments import ANSWERED, UsageError, drill_id, one_line, parse
from check_failover.places import HERE, REDIRECTOR_SOCKET
from check_failover.sms.spool import Spool, SpoolError, Text, key_of
from check_failover.sms.text import fit, plain, shorten

USAGE = f"""\
failover_sms: notification command for Nagios and Icinga; sends a text through the gateway of check_failover's config.

  --number NUMBERS       $CONTACTPAGER$: one or more phone numbers, separated by commas (required)
  --text TEXT            send this text; or let it be composed from
  --type TYPE            $NOTIFICATIONTYPE$: PROBLEM, RECOVERY, ACKNOWLEDGEMENT, ...
  --host HOST            $HOSTNAME$
  --service SERVICE      $SERVICEDESC$; empty for a host's notification
  --state STATE          $SERVICESTATE$ or $HOSTSTATE$
  --output TEXT          $SERVICEOUTPUT$ or $HOSTOUTPUT$
  --author WHO           $NOTIFICATIONAUTHOR$
  --comment TEXT         $NOTIFICATIONCOMMENT$
  --date TEXT            $SHORTDATETIME$
  --event ID             what makes this event unique, e.g. $LASTSERVICESTATECHANGE$-$SERVICENOTIFICATIONNUMBER$: the
                         same event is told to a number once, however many handlers run
  --config FILE          ({HERE["config"]})
  --drill NAME           notification command of the service "NAME drill": compose the text, look whether spool and
                         gateway would take it, tell the redirector (--socket PATH); nothing is sent
  --now                  wait for the gateway and say what it answered (to try a new gateway)
  --flush [--stay S]     send what waits in the spool, for S seconds at most (a timer's job)
  -h, --help; -V, --version

Exit code: 0 written down (or sent, or told already); 1 neither written down nor sent; 3 wrong command line."""

OPTIONS = dict.fromkeys(
    ("number", "text", "type", "host", "service", "state", "output", "author", "comment", "date", "event", "drill"), ""
) | {"config": HERE["config"], "socket": REDIRECTOR_SOCKET}
EVENT_WINDOW = 86400.0  # seconds in which an event of the same name is the same event
REPEAT_WINDOW = 60.0  # seconds in which the same notification without a name is taken for the same event


def main() -> int:
    """Entry point of ``failover_sms``."""
    return run(sys.argv[1:])


def run(argv: Sequence[str]) -> int:
    """One notification: prints one line, returns the exit code."""
    if argv and argv[0] in ("-h", "--help", "-V", "--version"):
        print(USAGE if argv[0] in ("-h", "--help") else f"failover_sms {__version__}")
        return ANSWERED
    if "--flush" in argv:
        from check_failover.sms.flush import main as flush

        return flush([word for word in argv if word != "--flush"])
    try:
        options = parse(argv, OPTIONS, flags=("now",))
        texts = compose(options, time.time())
    except UsageError as error:
        print(f"failover_sms: {one_line(str(error))}")
        return ANSWERED
    if options["drill"]:
        return _drill(options)
    return _send_now(options["config"], texts) if "now" in options else _spool(options["config"], texts)


def compose(options: Mapping[str, str], now: float) -> list[Text]:
    """The texts of a command line, one for each number. Raises UsageError."""
    numbers = [_number(word) for word in options["number"].split(",") if word.strip()]
    if not numbers:
        raise UsageError("--number is missing or empty (the contact has no pager?)")
    if not options["text"] and not options["host"]:
        raise UsageError("--text, or --host with --type, --state and --output, is missing")
    text = shorten(plain(options["text"])) if options["text"] else notification(options)
    event, window = _event(options, text)
    return [
        Text(key=key_of(*event, number) if event else key_of(), number=number, text=text, at=now, window=window)
        for number in dict.fromkeys(numbers)
    ]


def notification(options: Mapping[str, str]) -> str:
    """``PROBLEM ldap primary CRITICAL on ldap.example.org: no reply to 12 of 12 requests (21:02:33)``; fits one SMS."""
    value = {name: plain(text) for name, text in options.items()}
    what = f"{value['service']} {value['state']} on {value['host']}" if value["service"] else ""
    head = " ".join(filter(None, (value["type"], what or f"{value['host']} {value['state']}")))
    said = f"{value['author']}: {value['comment']}" if value["author"] and value["comment"] else value["comment"]
    output = value["output"].removeprefix(f"{value['state']}: ")  # the state stands in the head already
    body = "; ".join(filter(None, (said, output)))
    tail = f" ({value['date']})" if value["date"] else ""
    return fit(f"{head}: " if body else head, body, tail)


def _event(options: Mapping[str, str], text: str) -> tuple[tuple[str, ...], float]:
    """What makes two texts one, and for how long."""
    about = tuple(options[name] for name in ("type", "host", "service", "state"))
    if options["event"]:
        return (*about, options["event"]), EVENT_WINDOW
    return ((*about, text), REPEAT_WINDOW) if not options["text"] else ((), 0.0)


def _number(word: str) -> str:
    number = re.sub(r"[\s()./-]", "", word)
    if not re.fullmatch(r"\+?[0-9]{3,20}", number):
        raise UsageError(f"{word.strip()!r} is not a phone number: digits, with + in front for the international form")
    return number


def _spool(config: str, texts: Sequence[Text]) -> int:
    spool = Spool(_state_dir(config) / "spool")
    refused: list[Text] = []
    for text in texts:
        try:
            print(f"{text.number}: {'written down' if spool.put(text) else 'told already'}: {text.text}")
        except SpoolError as error:
            print(f"{text.number}: CANNOT BE WRITTEN DOWN: {one_line(str(error))}: sent directly")
            refused.append(text)
    if len(refused) < len(texts):
        _start_sender(config)
    return _send_now(config, refused) if refused else 0


def _state_dir(config: str) -> Path:
    """``state_dir`` of the config; the default where it cannot be read, which the sender will complain about."""
    try:
        controller = tomllib.loads(Path(config).read_text("utf-8")).get("controller", {})
    except (OSError, ValueError) as error:
        print(f"failover_sms: {config}: {one_line(str(error))}: keeping the text in {HERE['state_dir']}")
        controller = {}
    state_dir = controller.get("state_dir") if isinstance(controller, dict) else None
    return Path(state_dir if isinstance(state_dir, str) else HERE["state_dir"])


def _start_sender(config: str) -> None:
    """In a session of its own, because Nagios kills the command's whole process group when its time is over."""
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    argv = [sys.executable, "-P", "-m", "check_failover.sms.flush", "--config", config]
    try:
        os.posix_spawn(sys.executable, argv, os.environ, file_actions=nothing, setsid=True)
    except OSError as error:
        print(f"failover_sms: cannot start the sender ({error.strerror}); the timer will send it")


def _drill(options: Mapping[str, str]) -> int:
    """All but sending; the redirector hears how it went."""
    from check_failover.config import ConfigError, load
    from check_failover.control import ControlError, ask
    from check_failover.sms import GatewayError
    from check_failover.sms.reach import reach

    try:
        config, problem = load(options["config"]), None
        if config.sms is not None:
            reach(config)
    except (ConfigError, GatewayError) as error:
        problem = one_line(str(error))
    report = {"verb": "drilled", "service": options["drill"], "id": drill_id(options["output"]), "part": "notification"}
    try:
        said = ask(options["socket"], {**report, "problem": problem}, timeout=5.0)["text"]
    except ControlError as error:
        said = one_line(str(error))
    print(f"{options['drill']}: {problem or 'spool and gateway would take it'}; {said}")
    return 1 if problem else 0


def _send_now(config: str, texts: Sequence[Text]) -> int:
    """Without the spool: straight to the gateway, its answer on stdout."""
    from check_failover.config import ConfigError, load
    from check_failover.sms import GatewayError
    from check_failover.sms.flush import sender

    code = 0
    for text in texts:
        problems = []
        try:
            one = sender(load(config))
        except (ConfigError, GatewayError) as error:
            print(f"{text.number}: NOT SENT: {one_line(str(error))}")
            code = 1
            continue
        for name, gateway in one.ways:
            try:
                gateway.send(text.text, text.number, "")
            except GatewayError as error:
                problems.append(f"{name}: {one_line(str(error))}")
                continue
            one.spool.log(number=text.number, text=text.text, gateway=name, direct=True, key=text.key)
            print(f"{text.number}: accepted by {name}: {text.text}")
            break
        else:
            print(f"{text.number}: NOT SENT: {'; '.join(problems)}")
            code = 1
    return code
