"""The notification command: composes the text, stores it in the spool, starts a sender, and exits.

Nagios runs it for each contact of a notification; a person or a script calls it with ``--number`` and ``--text``. It
does not wait for the gateway. Only if the spool cannot store the text (disk full, no permission), it sends the text
directly and says so. It does not validate the config: an error in the config must not delay a text.
"""

import os
import re
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from check_failover.handlers.arguments import ANSWERED, UsageError, answered, drill_id, one_line, parse
from check_failover.places import HERE, REDIRECTOR_SOCKET
from check_failover.sms.spool import Spool, SpoolError, Text, key_of
from check_failover.sms.text import fit, plain

OPTIONS = dict.fromkeys(
    ("number", "text", "type", "host", "service", "state", "output", "author", "comment", "date", "event", "drill"), ""
) | {"config": HERE["config"], "socket": REDIRECTOR_SOCKET}
EVENT_WINDOW = 86400.0  # seconds in which the same --event is the same event
REPEAT_WINDOW = 60.0  # seconds in which the same notification without --event counts as the same event


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``failover_sms``: prints one line for one notification, returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if answered(argv, "failover_sms"):
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
    """One text for each number of a command line. Raises UsageError."""
    numbers = [_number(word) for word in options["number"].split(",") if word.strip()]
    if not numbers:
        raise UsageError("--number is missing or empty (does the contact have a pager?)")
    if not options["text"] and not options["host"]:
        raise UsageError("--text, or --host with --type, --state and --output, is missing")
    text = fit("", plain(options["text"])) if options["text"] else notification(options)
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
    output = value["output"].removeprefix(f"{value['state']}: ")  # the head already contains the state
    body = "; ".join(filter(None, (said, output)))
    tail = f" ({value['date']})" if value["date"] else ""
    return fit(f"{head}: " if body else head, body, tail)


def _event(options: Mapping[str, str], text: str) -> tuple[tuple[str, ...], float]:
    """The identity of the event, and the seconds for which a text of the same identity is a duplicate."""
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
            print(f"{text.number}: {'stored' if spool.put(text) else 'duplicate, not stored'}: {text.text}")
        except SpoolError as error:
            print(f"{text.number}: CANNOT BE STORED: {one_line(str(error))}: sending it directly")
            refused.append(text)
    if len(refused) < len(texts):
        _start_sender(config)
    return _send_now(config, refused) if refused else 0


def _state_dir(config: str) -> Path:
    """``state_dir`` of the config, or the default if the config cannot be read; the sender reports that error."""
    try:
        controller = tomllib.loads(Path(config).read_text("utf-8")).get("controller", {})
    except (OSError, ValueError) as error:
        print(f"failover_sms: {config}: {one_line(str(error))}: storing the text in {HERE['state_dir']}")
        controller = {}
    state_dir = controller.get("state_dir") if isinstance(controller, dict) else None
    return Path(state_dir if isinstance(state_dir, str) else HERE["state_dir"])


def _start_sender(config: str) -> None:
    """Start the sender in its own session, because Nagios kills the command's process group at a timeout."""
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    argv = [sys.executable, "-P", "-m", "check_failover.sms.flush", "--config", config]
    try:
        os.posix_spawn(sys.executable, argv, os.environ, file_actions=nothing, setsid=True)
    except OSError as error:
        print(f"failover_sms: cannot start the sender ({error.strerror}); the timer will send it")


def _drill(options: Mapping[str, str]) -> int:
    """Test everything except sending, and report the result to the redirector."""
    from check_failover.config import ConfigError, load
    from check_failover.control import ControlError, ask
    from check_failover.sms import GatewayError
    from check_failover.sms.flush import reach

    try:
        config, problem = load(options["config"], quick=True), None
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
    """Send without the spool, and print the gateway's answer."""
    from check_failover.config import ConfigError, load
    from check_failover.sms import GatewayError
    from check_failover.sms.flush import sender

    try:
        one = sender(load(config, quick=True))
    except (ConfigError, GatewayError) as error:
        for text in texts:
            print(f"{text.number}: NOT SENT: {one_line(str(error))}")
        return 1
    code = 0
    for text in texts:
        problems = []
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
