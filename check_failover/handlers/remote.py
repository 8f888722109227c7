"""The forced command of a remote core's ssh key: runs the event handler or one of our checks.

SSH_ORIGINAL_COMMAND holds the core's command (sshd(8), AUTHORIZED_KEYS FILE FORMAT, ``command=``). It is split at
spaces, each word must match its pattern in ``WORDS``, and no shell interprets it. The command contains no facts: the
redirector asks the local sniffer, whose facts are fresher than those sent to the core and back. So a stolen key can do
no more than the core: order a fail-over or fail-back that the redirector itself approves.
"""

import os
import re
import sys

from check_failover.handlers import event
from check_failover.handlers.arguments import ANSWERED, UsageError, answered, one_line, parse
from check_failover.places import HERE, REDIRECTOR_SOCKET

OPTIONS = {"config": HERE["config"], "socket": REDIRECTOR_SOCKET}
NAME, HOST, NUMBER = "[A-Za-z][A-Za-z0-9_-]{0,14}", r"[A-Za-z0-9][A-Za-z0-9_.:@/-]{0,99}", "[0-9]{1,4}"
STATE, TYPE, TARGET = "OK|WARNING|CRITICAL|UNKNOWN", "SOFT|HARD", "primary|standby|service"
NOTICE = "[A-Z]{1,24}"
OF_EVENT = (("service", NAME), ("state", STATE), ("state-type", TYPE))
# verb -> its words: name and pattern; for the handlers the names are options of failover_event
WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "event": (*OF_EVENT, ("downtime", NUMBER), ("host-downtime", NUMBER)),
    "fail-back": OF_EVENT,
    "drill": OF_EVENT,
    "notice": (("notice", NOTICE), ("host", HOST)),
    **dict.fromkeys(("traffic", "redirect", "sync"), (("service", NAME),)),
    "probe": (("service", NAME), ("target", TARGET)),
}
# verb -> option that takes the rest of the command as one text
REST = {"fail-back": "output", "drill": "output", "notice": "description"}
MAX_COMMAND = 4096  # characters


def main() -> int:
    """Entry point of ``failover_remote``: runs one command, returns its exit code; a check replaces this process."""
    argv = sys.argv[1:]
    if answered(argv, "failover_remote"):
        return ANSWERED
    try:
        options = parse(argv, OPTIONS)
        verb, words = understood(os.environ.get("SSH_ORIGINAL_COMMAND", ""))
        if verb in ("traffic", "redirect", "sync", "probe"):
            return _check(verb, words, options["config"])
    except UsageError as error:
        print(f"UNKNOWN: failover_remote: {one_line(str(error))}")
        return ANSWERED
    said = [f"--{name}={value}" for name, value in words.items()]
    if verb in ("fail-back", "drill"):
        said.append(f"--{verb}")
    return event.main([*said, "--by=nagios (ssh)", f"--socket={options['socket']}"])


def understood(asked: str) -> tuple[str, dict[str, str]]:
    """Verb and words by name of a command. Raises UsageError if any part of it is invalid."""
    verb, *given = asked[: MAX_COMMAND + 1].split(" ")
    wanted = WORDS.get(verb)
    if wanted is None or len(asked) > MAX_COMMAND or not asked.isprintable():
        raise UsageError(f"{asked[:60]!r} is not one of: {', '.join(WORDS)}; see --help")
    rest = given[len(wanted) :]
    if len(given) < len(wanted) or (rest and verb not in REST):
        raise UsageError(f"{verb}: want {' '.join(name for name, _ in wanted)}, not {' '.join(given)[:60]!r}")
    words = {}
    for (name, pattern), word in zip(wanted, given, strict=False):
        if re.fullmatch(pattern, word) is None:
            raise UsageError(f"{verb}: {name} {word[:60]!r}: not {pattern}")
        words[name] = word
    if verb in REST:
        words[REST[verb]] = " ".join(rest)
    return verb, words


def _check(verb: str, words: dict[str, str], config: str) -> int:
    """Replace this process by the check. Raises UsageError if the check cannot be found."""
    name, arguments = verb, ["--service", words["service"]]
    if verb == "probe":
        from check_failover.config import ConfigError, load

        try:
            service = load(config, quick=True).service(words["service"])
        except ConfigError as error:
            raise UsageError(str(error)) from None
        if service.check.type == "plugin":  # the site's own, with the sniffer's arguments and environment
            from check_failover.checks.external import arguments as of_plugin
            from check_failover.programs import ENVIRONMENT

            argv = of_plugin(service.check.options, service.endpoint(words["target"]))
            try:
                os.execve(argv[0], argv, ENVIRONMENT)  # noqa: S606
            except OSError as error:
                raise UsageError(f"{argv[0]}: cannot run: {error.strerror}") from None
        name, arguments = service.check.type, [*arguments, "--target", words["target"]]
    argv = [sys.executable, "-P", "-m", "check_failover.checks.entry", name, "--config", config, *arguments]
    os.execv(argv[0], argv)  # noqa: S606 -- no shell is what we want
