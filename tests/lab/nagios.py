"""A private Nagios 4: own nagios.cfg, command file, status.dat and logs under one directory; as the user ``nagios``.

    with Nagios(directory, objects, argv_prefix=house.argv("controller")) as nagios:
        nagios.command("PROCESS_SERVICE_CHECK_RESULT;ldap.example.org;ldap primary;2;gone")
        nagios.wait("ldap primary", state=2)

What differs from Debian's /etc/nagios4/nagios.cfg and why: ``interval_length`` (a "minute" of the templates takes less,
so that a suite does not wait for it), ``check_result_reaper_frequency`` and ``status_update_interval`` (the same), and
a debug file, because nagios.log has whole seconds only and a timeline wants milliseconds.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.daemon import Core

NAGIOS = "/usr/sbin/nagios4"
PLUGINS = Path("/usr/lib/nagios/plugins")
STATES = {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}

CONFIG = """\
log_file={directory}/nagios.log
cfg_file={directory}/objects.cfg
object_cache_file={directory}/objects.cache
precached_object_file={directory}/objects.precache
resource_file={directory}/resource.cfg
status_file={directory}/status.dat
status_update_interval=2
nagios_user={user}
nagios_group={group}
check_external_commands=1
command_file={directory}/rw/nagios.cmd
lock_file={directory}/nagios.pid
temp_file={directory}/nagios.tmp
temp_path={directory}/tmp
query_socket={directory}/rw/nagios.qh
event_broker_options=-1
log_rotation_method=n
log_archive_path={directory}/archives
use_syslog=0
log_notifications=1
log_service_retries=1
log_event_handlers=1
log_initial_states=1
log_external_commands=1
log_passive_checks=1
check_result_path={directory}/checkresults
check_result_reaper_frequency=1
cached_host_check_horizon=15
cached_service_check_horizon=15
max_host_check_spread=1
max_service_check_spread=1
service_inter_check_delay_method=n
event_handler_timeout=30
notification_timeout=30
retain_state_information=1
state_retention_file={directory}/retention.dat
retention_update_interval=60
use_retained_program_state=1
use_retained_scheduling_info=0
interval_length={interval_length}
check_for_updates=0
execute_service_checks=1
accept_passive_service_checks=1
execute_host_checks=1
enable_notifications=1
enable_event_handlers=1
check_service_freshness=1
service_freshness_check_interval={freshness}
additional_freshness_latency=5
enable_flap_detection=0
date_format=iso8601
illegal_object_name_chars=`~!$%^&*|'"<>?,()=
illegal_macro_output_chars=`~$&|'"<>
enable_environment_macros=0
debug_level=176
debug_verbosity=1
debug_file={directory}/nagios.debug
max_debug_file_size=100000000
"""

BASE_OBJECTS = f"""\
define timeperiod {{
    timeperiod_name  24x7
    alias            always
    sunday           00:00-24:00
    monday           00:00-24:00
    tuesday          00:00-24:00
    wednesday        00:00-24:00
    thursday         00:00-24:00
    friday           00:00-24:00
    saturday         00:00-24:00
}}
define command {{
    command_name  check-host-alive
    command_line  {PLUGINS}/check_dummy 0 "the controller answers for it"
}}
"""


class Nagios(Core):
    """One core. ``stop`` and ``start`` may alternate; states are retained over it as on a site."""

    out = "nagios4.out"
    every = 0.02

    def __init__(
        self,
        directory: Path,
        objects: str,
        argv_prefix: Sequence[str] = (),
        *,
        plugins: Path = PLUGINS,
        user: str = "nagios",
        interval_length: int = 60,
        freshness: int = 60,
    ) -> None:
        self.directory, self.user = directory, user
        self._prefix = tuple(argv_prefix)
        account = pwd.getpwnam(user)
        for name in (".", "rw", "tmp", "checkresults", "archives"):
            path = directory / name
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, account.pw_uid, account.pw_gid)
        self.command_file, self.log = directory / "rw" / "nagios.cmd", directory / "nagios.log"
        self.config = directory / "nagios.cfg"
        self.config.write_text(
            CONFIG.format(
                directory=directory,
                user=user,
                group=_group(account.pw_gid),
                interval_length=interval_length,
                freshness=freshness,
            )
        )
        (directory / "objects.cfg").write_text(objects)
        (directory / "resource.cfg").write_text(f"$USER1$={plugins}\n")

    def verify(self) -> str:
        """``nagios4 -v``: its output when it found neither error nor warning."""
        done = subprocess.run(
            [*self._prefix, NAGIOS, "-v", str(self.config)], capture_output=True, text=True, timeout=60, check=False
        )
        totals = re.findall(r"Total (Warnings|Errors): +(\d+)", done.stdout)
        assert totals == [("Warnings", "0"), ("Errors", "0")], (
            f"nagios4 -v is not clean:\n{done.stdout[-4000:]}{done.stderr}"
        )
        return done.stdout

    def argv(self) -> list[str]:
        return [*self._prefix, NAGIOS, str(self.config)]

    def serves(self) -> bool:
        """Whether it takes commands: a killed one leaves the file, without a reader."""
        try:
            os.close(os.open(self.command_file, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return False
        return self.command_file.is_fifo()

    def kill(self) -> None:
        """End it as an out-of-memory killer would: the command file stays, without a reader."""
        for pid in _children(self.pid):
            os.kill(pid, 9)
        super().kill()

    def command(self, text: str) -> None:
        """Write one external command (``NAME;argument;...``) as a program on the same machine would."""
        handle = os.open(self.command_file, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(handle, f"[{int(time.time())}] {text}\n".encode())
        finally:
            os.close(handle)

    def services(self) -> dict[str, dict[str, str]]:
        """Service description -> its fields in status.dat, which is written every two seconds."""
        try:
            text = (self.directory / "status.dat").read_text("utf-8", "replace")
        except OSError:
            return {}
        found = {}
        for block in re.findall(r"^servicestatus \{\n(.*?)\n\t\}", text, re.MULTILINE | re.DOTALL):
            fields = dict(line.strip().split("=", 1) for line in block.splitlines() if "=" in line)
            found[fields["service_description"]] = fields
        return found

    def debug(self, pattern: str) -> list[tuple[float, str]]:
        """(Unix time with microseconds, text) of the debug file's lines that match."""
        path = self.directory / "nagios.debug"
        text = path.read_text("utf-8", "replace") if path.exists() else ""
        rows = re.findall(r"^\[(\d+\.\d+)\] \S+ \S+ (.*)$", text, re.MULTILINE)
        return [(float(at), line) for at, line in rows if re.search(pattern, line)]


def _group(gid: int) -> str:
    import grp

    return grp.getgrgid(gid).gr_name


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
