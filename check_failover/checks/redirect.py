"""check_failover_redirect: whether the kernel's redirect points to the intended target.

Asks failover-redirector, which reads the rule from the kernel. OK on the primary; WARNING on the standby or while held;
CRITICAL when kernel and intent differ, a fail-over is pending, or the redirector does not answer: then traffic keeps
its target, but no fail-over is possible.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from check_failover import control
from check_failover.checks.plugin import CheckError, Outcome, Perf, deadline, parser, socket_of
from check_failover.control import ControlError, DeniedError, UnreachableError
from check_failover.model import State, Target


def check(argv: Sequence[str]) -> Outcome:
    arguments = parser("check_failover_redirect", __doc__).parse_args(argv)
    deadline(arguments.timeout, "failover-redirector")
    path = arguments.socket or socket_of(arguments.config, "redirector.sock")
    try:
        reply = control.ask(path, {"verb": "status", "service": arguments.service}, arguments.timeout)
    except ControlError as error:
        if isinstance(error, UnreachableError) and not isinstance(error, DeniedError):
            return Outcome(State.CRITICAL, f"failover-redirector is away: {error}")
        raise CheckError(str(error)) from None
    try:  # without ``records``, whose imports take as long as the rest of this check
        known = reply["services"]
        if arguments.service in known:
            return judge(known[arguments.service])
    except (LookupError, TypeError, ValueError) as error:
        raise CheckError(f"failover-redirector's status is not understood: {error}: restart it") from None
    raise CheckError(f"no service {arguments.service!r}; the redirector has: {', '.join(sorted(known)) or 'none'}")


def judge(status: Mapping[str, Any]) -> Outcome:
    """State and text from the redirector; this check compares kernel and intent once more."""
    state, text = State(status["state"]), str(status["text"])
    target, kernel = Target(status["target"]), status["kernel"]
    if kernel != target and state is not State.CRITICAL:
        state, text = State.CRITICAL, f"the kernel says {kernel or 'nothing'}, intended is {target}"
    standby = Perf("standby", int(target is Target.STANDBY), "", "", "", "0", "1")
    held = Perf("held", int(status["hold"] is not None), "", "", "", "0", "1")
    return Outcome(state, text, (standby, held), "\n".join(map(str, status["story"])))
