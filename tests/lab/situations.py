"""The table of situations in ``nagios-conf/doc/situations.md``, made from the tables of ``decide``.

``python -m tests.lab.situations`` writes the page anew; a unit test compares it.
"""

from __future__ import annotations

from pathlib import Path

from check_failover.decide import FAIL_BACK, FAIL_OVER, LAST_RESORT, Decision, Situation, decide
from check_failover.model import Detector, Facts, Hold, Policy, Target

PAGE = Path(__file__).parents[2] / "nagios-conf" / "doc" / "situations.md"
HEALTH = {"well": True, "failed": False, "unknown": None}
CASES = ("", "a hold is set", "the standby's data is too old", "changes on the standby were not brought back")
POLICY = Policy(max_sync_age=1800.0)
HEAD = """# What happens in each situation

*well*: the server passes its probes. *failed*: two probes failed and clients get no answers. *unknown*: no probe could
be made. The columns after the first say what one more circumstance changes. Words in code style are the names of
refusals. The policy is the default with `max_sync_age = 1800`; `last_resort = "always"` ignores changes that were not
brought back, `"never"` leaves the last resort to a person. The page is made from the tables that decide
(`python -m tests.lab.situations`), so it says what the program does.

"""


def situation(target: Target, primary: bool | None, case: str) -> Situation:
    return Situation(
        target,
        Hold("an operator", 0.0, "") if "hold" in case else None,
        since_flip=3600.0,
        primary_ok=primary,
        primary_passes=3 if primary else 0,
        primary_good_for=60.0 if primary else 0.0,
        synced_back="not brought back" not in case,
        standby_good_for=60.0,
    )


def facts(serving: Target, serves: bool | None, standby: bool | None, case: str) -> Facts:
    probed = {True: (2, 0), False: (2, 2), None: (0, 0)}[serves]
    return Facts(
        Detector.UNANSWERED_REQUEST,
        *probed,
        standby_ok=standby,
        sync_age=3600.0 if "too old" in case else 60.0,
        server=serving,
    )


def effect(target: Target, primary: bool | None, standby: bool | None, case: str) -> str:
    """What happens, in a few words."""
    serves = primary if target is Target.PRIMARY else standby
    known = facts(target, serves, standby, case)
    here = situation(target, primary, case)
    if target is Target.PRIMARY:
        return "stays" if serves else moved(decide(FAIL_OVER, known, POLICY, here), "fail-over")
    if serves is False:
        return moved(decide(LAST_RESORT, known, POLICY, here), "last resort: to the primary")
    back = decide(FAIL_BACK, known, POLICY, here)
    return "stays; " + ("ready to fail back" if back.flip else f"fail-back refused: `{back.reason}`")


def moved(decision: Decision, word: str) -> str:
    return f"**{word}**" if decision.flip else f"stays: `{decision.reason}`"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for target in Target:
        lines.append(
            f"## The {target} serves\n\n| primary | standby | {' | '.join(case or 'nothing else' for case in CASES)} |"
        )
        lines.append("|---" * (2 + len(CASES)) + "|")
        for primary, standby in ((p, s) for p in HEALTH for s in HEALTH):
            effects = [effect(target, HEALTH[primary], HEALTH[standby], case) for case in CASES]
            lines.append(f"| {primary} | {standby} | {' | '.join(effects)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
