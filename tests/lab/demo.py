"""``make demo``: a fail-over with real programs, with a timeline of the events and of the clients' outages.

Exit code 0 when the clients were served again and the SMS arrived, 1 otherwise. Ends by itself within two minutes and
removes what it made; with ``--keep`` it stays, shows where the web interface is, and ends on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tests.lab.faults import FAULTS
from tests.lab.load import Load, Request
from tests.lab.netns import poll
from tests.lab.site import BASE, Site
from tests.lab.web import PASSWORD, USER, Cgis, Web

LIMIT = 110  # seconds for the whole run
SETTLE = 3.0  # seconds of ordinary traffic before the fault: thresholds are learned
AFTER = 3.0  # seconds watched after the standby's first answer
WEB_PORT = 8980

Row = tuple[float, str, str]


class TooLongError(Exception):
    """The run's own limit passed."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fault", choices=sorted(FAULTS), default="crash")
    parser.add_argument("--keep", action="store_true", help="leave it running, with the web interface's address")
    arguments = parser.parse_args()
    os.umask(0o022)
    signal.signal(signal.SIGALRM, _too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.alarm(LIMIT)
    with tempfile.TemporaryDirectory(prefix="check_failover-demo-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        try:
            return _run(directory, arguments.fault, keep=arguments.keep)
        except (AssertionError, TooLongError) as problem:
            print(f"demo: {problem}", file=sys.stderr)
            return 1


def _too_long(*_: object) -> NoReturn:
    raise TooLongError(f"not done within {LIMIT} s")


def _run(directory: Path, fault: str, *, keep: bool) -> int:
    say(
        "building: client, controller, primary and standby; two slapd, Nagios 4 with web interface, Kannel with a phone"
    )
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(Site(directory))
        assert site.core is not None
        web = stack.enter_context(Cgis(directory / "web", site.core, port=WEB_PORT)) if keep else None
        load = stack.enter_context(Load(site.house, directory / "load", base=BASE, attribute="description"))
        with poll_phone(site) as phone:
            site.wait_healthy("standby")
            time.sleep(SETTLE)
            say(f"an office of LDAP clients: 50 requests/s, 3 open sessions; now the primary: {fault}")
            at = site.fault(fault)
            good = watch(site, load, at, phone)
        report(site, load, at, fault, phone)
        signal.alarm(0)
        if web is not None:
            linger(site, web)
    return 0 if good else 1


def watch(site: Site, load: Load, at: float, phone: list[Row]) -> bool:
    """Wait for the standby's first answer, the flip and the SMS that tell of it. False: it did not come."""
    try:
        poll(lambda: load.answered_by("standby", at), 30.0, "an answer from the standby")
        site.wait_target("standby", 30.0)
        time.sleep(AFTER)
        poll(lambda: any("redirect" in text for _, _, text in phone), 20.0, "the SMS about the fail-over")
    except AssertionError as problem:
        print(f"demo: {problem}", file=sys.stderr)
        return False
    return True


@contextlib.contextmanager
def poll_phone(site: Site) -> Iterator[list[Row]]:
    """Notes when a text is on the phone, to a hundredth of a second (Kannel's own log has whole seconds)."""
    rows: list[Row] = []
    stop = threading.Event()

    def look() -> None:
        assert site.kannel is not None
        while not stop.wait(0.01):
            for number, text in site.kannel.received()[len(rows) :]:
                rows.append((time.monotonic(), f"SMS to {number}", text))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield rows
    finally:
        stop.set()
        thread.join()


def report(site: Site, load: Load, at: float, fault: str, phone: list[Row]) -> None:
    """The timeline and the clients' view."""
    rows = sorted([*from_load(load, at), *from_log(site), *from_core(site), *from_journal(site), *phone])
    say(f"\n{fault}: seconds after the fault")
    for when, what, text in rows:
        if when >= at - 1.0:
            say(f"  {when - at:8.3f}  {what:<22} {text[:160]}")
    requests = [request for request in load.requests() if request.end >= at]
    short = [request for request in requests if request.kind == "short"]
    kept = [request for request in requests if request.kind == "kept"]
    say("\nwhat the clients felt from then on")
    say(f"  new connections   {len(short)}, failed {failed(short)}, longest wait {longest(short):.3f} s")
    say(f"  open sessions     {len(kept)} reads, failed {failed(kept)}, longest wait {longest(kept):.3f} s")
    say(f"  rescued before the flip: {site.sniffer()['stats']['rescued']}")


def failed(requests: list[Request]) -> int:
    return sum(request.server is None for request in requests)


def longest(requests: list[Request]) -> float:
    return max((request.waited for request in requests), default=0.0)


def from_load(load: Load, at: float) -> list[Row]:
    """The last answer of the primary and the first of the standby."""
    answers = [request for request in load.requests() if request.server]
    before = [request.end for request in answers if request.server == "primary"]
    first = next((request for request in answers if request.server == "standby" and request.end >= at), None)
    rows = [(max(before), "last answer", "from the primary")] if before else []
    return rows + ([(first.end, "first answer", "from the standby")] if first else []) + [(at, "FAULT", "")]


def from_log(site: Site, service: str = "ldap") -> list[Row]:
    """Suspicion and verdict from the sniffer's log."""
    rows = []
    for line in site.log("sniffer").splitlines():
        match = re.match(rf"(\S+ \S+)\.(\d{{3}}) \S+ \S+ {service}: (suspicion|probe of|verdict)(.*)", line)
        if match:
            seconds = time.mktime(time.strptime(match[1], "%Y-%m-%d %H:%M:%S")) + int(match[2]) / 1000
            rows.append((monotonic(seconds), f"sniffer: {match[3]}", match[4].strip(" ,:")))
    return rows


def from_core(site: Site) -> list[Row]:
    """What Nagios took in and ran, from its debug file (its log has whole seconds)."""
    assert site.core is not None
    rows = []
    for when, line in site.core.debug(r"^Command Arguments: .*;ldap (primary|redirect);|^Running event handler"):
        arguments = re.match(r"Command Arguments: [^;]*;([^;]*);(\d);(.*)", line)
        if arguments:
            rows.append((monotonic(when), "Nagios: result", f"{arguments[1]}: {arguments[3].split('|')[0]}"))
        else:
            rows.append((monotonic(when), "Nagios: event handler", line.removeprefix("Running event handler for ")))
    return rows


def from_journal(site: Site) -> list[Row]:
    """The flip, as the redirector wrote it down."""
    rows = []
    for entry in site.journal("fail-over", "fail-back"):
        text = f"{entry['line']}, {1000 * entry['took']:.0f} ms, clients freed: {entry.get('freed', 0)}"
        rows.append((monotonic(entry["at"] + entry["took"]), "redirector: flip", text))
    return rows


def monotonic(wall: float) -> float:
    return wall - time.time() + time.monotonic()


def linger(site: Site, web: Web) -> None:
    """Until Ctrl-C."""
    say(f"\nweb interface: {web.url} (user {USER}, password {PASSWORD})")
    say(f"status:        {Path(sys.executable).parent}/failoverctl status --config {site.config}")
    say(f"namespaces:    {', '.join(site.house.name(who) for who in ('client', 'controller', 'primary', 'standby'))}")
    say("Ctrl-C ends it and removes everything")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
