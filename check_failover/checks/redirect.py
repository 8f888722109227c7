"""check_failover_redirect: whether the kernel's redirect points to the intended target.

Asks failover-redirector, which reads the rule from the kernel. OK on the primary; WARNING on the standby or while held;
CRITICAL when kernel and intent differ, a fail-over is pending, or the redirector does not answer: then traffic keeps
its target, but no fail-over is possible.
"""

from collections.abc import Sequence

from check_failover import control
from check_failover.checks.plugin import CheckError, Outcome, Perf, deadline, parser, socket_of
from check_failover.control import ControlError, DeniedError, UnreachableError
from check_failover.model import State, Target
from check_failover.records import ServiceStatus, service_statuses


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
    known = service_statuses(reply)
    if arguments.service not in known:
        raise CheckError(f"no service {arguments.service!r}; the redirector has: {', '.join(sorted(known)) or 'none'}")
    return judge(known[arguments.service])


def judge(status: ServiceStatus) -> Outcome:
    """State and text from the redirector; this check compares kernel and intent once more."""
    state, text = status.state, status.text
    if status.kernel is not status.target and state is not State.CRITICAL:
        state, text = State.CRITICAL, f"the kernel says {status.kernel or 'nothing'}, intended is {status.target}"
    perf = (
        Perf("standby", int(status.target is Target.STANDBY), "", "", "", "0", "1"),
        Perf("held", int(status.hold is not None), "", "", "", "0", "1"),
    )
    return Outcome(state, text, perf, "\n".join(status.story))
