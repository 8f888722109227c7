"""What the doctor finds about event handlers: each test breaks one thing for real, and mends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from check_failover.admin import looks_core
from check_failover.admin.finding import scene, user_of
from check_failover.config import load
from tests.component.test_doctor import doctor, new, site, usual
from tests.lab.nagios import Nagios
from tests.lab.netns import poll
from tests.lab.site import HOST, Site

__all__ = ["site", "usual"]  # fixtures
pytestmark = pytest.mark.component


def core(site: Site) -> Nagios:
    assert isinstance(site.core, Nagios)
    return site.core


@contextlib.contextmanager
def handler(site: Site, text: str | None, mode: int = 0o755) -> Iterator[Path]:
    """Another program in the handler's place, or none."""
    path = site.directory / "plugins" / "eventhandlers" / "failover_event"
    away = path.with_name("away")
    path.rename(away)
    try:
        if text is not None:
            path.write_text(text)
            path.chmod(mode)
        yield path
    finally:
        away.rename(path)


def with_command(site: Site, change: Callable[[str], str]) -> Path:
    """A copy of nagios.cfg that reads changed objects."""
    objects = core(site).directory / "objects.cfg"
    other, copy = objects.with_name("changed.cfg"), objects.with_name("copy.cfg")
    other.write_text(change(objects.read_text()))
    copy.write_text(core(site).config.read_text().replace(str(objects), str(other)))
    return copy


def test_a_macro_that_is_not_defined(site: Site, usual: list[str]) -> None:
    copy = with_command(site, lambda text: text.replace("$USER1$/eventhandlers", "$USER9$/eventhandlers"))
    code, (line,) = new(site, usual, copy)
    assert code == 2
    begin = "missing  event handler: $USER9$/eventhandlers/failover_event: no $USER9$: define it in resource_file"
    assert line == begin


def test_a_typo_in_one_handlers_command(site: Site, usual: list[str]) -> None:
    """Of the three commands only that of the fail-back is wrong."""

    def typo(text: str) -> str:
        head, name, rest = text.partition("check_failover_event_fail_back\n")
        assert name
        return head + name + rest.replace("/failover_event", "/failover_evnt", 1)

    code, (line,) = new(site, usual, with_command(site, typo))
    assert code == 2
    assert line.startswith("missing  event handler: ")
    assert "failover_evnt: No such file or directory" in line


def test_the_file_is_missing(site: Site, usual: list[str]) -> None:
    with handler(site, None) as path:
        code, (line,) = new(site, usual)
    assert code == 2
    assert line.startswith(f"missing  event handler: {path}: No such file or directory")


def test_the_file_may_not_be_run(site: Site, usual: list[str]) -> None:
    with handler(site, "#!/bin/sh\n", 0o644) as path:
        code, (line,) = new(site, usual)
    assert code == 2
    assert line.startswith(f"missing  event handler: nagios may not use {path}: ")


@pytest.mark.parametrize("there", [True, False])
def test_the_interpreter(site: Site, usual: list[str], there: bool) -> None:
    """A virtual environment that only root may enter, or that was removed."""
    python = site.directory / "python"
    if there:
        python.write_text("")
        python.chmod(0o700)
    try:
        with handler(site, f"#!{python} -I\n") as path:
            code, (line,) = new(site, usual)
    finally:
        python.unlink(missing_ok=True)
    assert code == 2
    assert line.startswith(f"missing  interpreter of {path}: ")
    assert ("nagios may not use" if there else "No such file") in line


@pytest.mark.parametrize(("text", "found"), [
    ("#!/bin/sh\necho the disk is full\nexit 4\n", "exited with return code 4: the disk is full"),
    (None, "exited with return code 2: execvp"),
])  # fmt: skip
def test_the_last_run_failed(site: Site, usual: list[str], text: str | None, found: str) -> None:
    """nagios.log has it; a later run that does not fail ends the warning."""
    command, failed = f"PROCESS_SERVICE_CHECK_RESULT;{HOST};ldap drill", "EVENTHANDLER job.*exited with return code"
    before, started = len(core(site).lines(failed)), "SERVICE EVENT HANDLER: .*;ldap drill;"
    with handler(site, text):
        core(site).command(f"{command};2;by hand")
        poll(lambda: len(core(site).lines(failed)) > before, 15.0, "Nagios logs the failure")
    code, (line,) = new(site, usual)
    assert code == 1
    assert line.startswith(f"warning  event handler: {core(site).log}: after its last start, [")
    assert found in line
    starts = len(core(site).lines(started))
    core(site).command(f"{command};0;by hand")
    poll(lambda: len(core(site).lines(started)) > starts, 15.0, "the handler runs again")
    assert new(site, usual)[1] == []


@pytest.mark.parametrize(("off", "on", "field", "found"), [
    (f"DISABLE_SVC_EVENT_HANDLER;{HOST};ldap primary", f"ENABLE_SVC_EVENT_HANDLER;{HOST};ldap primary",
     "event_handler_enabled=0", "its event handler is switched off in the core: "),
    ("DISABLE_EVENT_HANDLERS", "ENABLE_EVENT_HANDLERS",
     "enable_event_handlers=0", "all event handlers are switched off in the core: "),
])  # fmt: skip
def test_switched_off_in_the_running_core(
    site: Site, usual: list[str], off: str, on: str, field: str, found: str
) -> None:
    """The configuration has them on; a person switched them off, and the core keeps that over its restarts."""
    status = core(site).directory / "status.dat"
    core(site).command(off)
    try:
        poll(lambda: f"\t{field}\n" in status.read_text(), 15.0, "status.dat has it")
        code, (line,) = new(site, usual)
    finally:
        core(site).command(on)
        poll(lambda: f"\t{field}\n" not in status.read_text(), 15.0, "status.dat has it no longer")
    assert code == 2
    assert line.startswith(f"missing  ldap primary: {found}switch ")
    assert on in line
    assert new(site, usual)[1] == []


def test_the_sniffer_may_not_read_status_dat(site: Site) -> None:
    """Then it does not know of a downtime when it orders in the core's place: a warning, and only that."""
    assert doctor(site)[0] <= 1
    seen = scene(load(site.config), core(site).config)
    nobody = replace(seen, sniffer=replace(seen.sniffer, user=user_of("nobody")))
    path, place = core(site).directory / "status.dat", core(site).directory
    assert list(looks_core.settings(nobody)) == []
    mode = place.stat().st_mode
    place.chmod(0o750)
    try:
        (found,) = looks_core.settings(nobody)
    finally:
        place.chmod(mode)
    assert str(found).startswith(f"warning  status_file: nobody may not use {path}: ")
