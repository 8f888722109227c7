"""Access to the controller: which server serves, the lock of a run, and its record.

``LocalAccess`` works on the controller itself. On another machine ``RemoteAccess`` talks over ssh to a process
``failover-sync --serve-home`` on the controller, one JSON object per line in each direction, until the run ends. In
both cases the lock is on the controller, and the kernel releases it when the run ends.
"""

import contextlib
import fcntl
import grp
import json
import os
import pwd
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from check_failover import checks, control, programs, reach, syncstate
from check_failover.config import Config
from check_failover.model import PassiveResult, Service, SyncSpec, Target
from check_failover.records import Reach, RecordError, from_json
from check_failover.sync import hosts
from check_failover.sync.guard import Standing, SyncRefusedError
from check_failover.sync.hosts import SyncStepError
from check_failover.syncstate import Refusal, SyncState
from check_failover.transports import TRANSPORTS, TransportError

GROUP = "check_failover"
_LOCK_PATIENCE = 1.0  # seconds: a reader of the record holds the lock for a moment
_REPLY_LIMIT = 60.0


def become_owner(state_dir: Path) -> None:
    """Create the records' directory; as root, change to the user that owns it.

    All records and keys then have one owner, whether the timer or a person started the run. Raises SyncStepError.
    """
    place = syncstate.directory(state_dir)
    try:
        if not place.exists():
            place.mkdir(mode=0o2750, parents=True)
            if os.geteuid() == 0 and any(group.gr_name == GROUP for group in grp.getgrall()):
                os.chown(place, -1, grp.getgrnam(GROUP).gr_gid)
            place.chmod(0o2750)  # mkdir applied the umask
        owner = place.stat().st_uid
        if os.geteuid() == 0 and owner != 0:
            user = pwd.getpwuid(owner)
            os.initgroups(user.pw_name, user.pw_gid)
            os.setgid(user.pw_gid)
            os.setuid(owner)
            os.environ["HOME"] = user.pw_dir
    except KeyError:
        raise SyncStepError(f"{place}: unknown owner; chown it to the user that failover-sync runs as") from None
    except OSError as error:
        raise SyncStepError(f"{place}: {error.strerror}: run as the user that owns it") from None


class LocalAccess:
    """Record and lock of one service, and its serving server, on the controller itself.

    Methods raise SyncStepError or SyncRefusedError. ``holder`` names the controller in the receiving server's lease,
    once the lock is taken.
    """

    def __init__(self, config: Config, service: Service) -> None:
        self._config, self._service = config, service
        self._state_dir = config.controller.state_dir
        self._lock: int | None = None
        self.holder = ""

    def acquire(self) -> SyncState:
        """Take the lock and return the record; SyncRefusedError (RUNNING) while another run holds the lock."""
        become_owner(self._state_dir)
        path = syncstate.directory(self._state_dir) / f"{self._service.name}.lock"
        end = time.monotonic() + _LOCK_PATIENCE
        try:
            self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            while True:
                try:
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise SyncRefusedError(Refusal.RUNNING, "another run of this service is in progress") from None
                    time.sleep(0.05)
            # two controllers may have the same name, or their machines the same ID
            token = os.pread(self._lock, 16, 0).decode("ascii", "replace")
            if not token:
                token = secrets.token_hex(8)
                os.pwrite(self._lock, token.encode(), 0)
            self.holder = f"{socket.gethostname()}/{token}"
        except OSError as error:
            raise SyncStepError(f"{path}: {error.strerror}: run as the user that owns it") from None
        return syncstate.read(self._state_dir, self._service.name)

    def now(self) -> float:
        """Unix time by the controller's clock; all times in the record are by that clock."""
        return time.time()

    def standing(self) -> Standing:
        """Which server serves now, and whether the primary is failing."""
        name, controller = self._service.name, self._config.controller
        try:
            services = control.ask(controller.redirector_socket, {"verb": "status", "service": name})["services"]
            mine = services[name]
            target, since = Target(mine["target"]), mine.get("since")
            kernel, told, unsure = mine.get("kernel"), mine.get("reached"), mine.get("peer_unsure") is True
            reached = reach.derived(target, since) if told is None else from_json(tuple[Reach, ...], told)
        except control.ControlError as error:
            return Standing(None, text=str(error))
        except RecordError as error:
            return Standing(None, text=f"the redirector's status is not understood: reached: {error}: restart it")
        except (KeyError, ValueError, TypeError):
            return Standing(None, text=f"the redirector knows no service {name!r}")
        if kernel is not None and kernel != target:
            return Standing(None, text=f"target is {target} in the redirector, but {kernel} in the kernel")
        if target is Target.STANDBY:
            return Standing(target, since, reached=reached, unsure=unsure)
        why = f"a fail-over is pending: {mine['pending']}" if mine.get("pending") else self._failing()
        return Standing(target, since, why is not None, why or "", reached, unsure)

    def _failing(self) -> str | None:
        """Why the primary is considered failing, or None; without a verdict of the sniffer one probe decides."""
        try:
            name = self._service.name
            message = {"verb": "status", "service": name}
            mine = control.ask(self._config.controller.sniffer_socket, message)["services"][name]
            verdict, text = str(mine["verdict"]), str((mine.get("primary") or {}).get("text") or "")
        except (control.ControlError, KeyError, TypeError, AttributeError):
            verdict, text = "idle", ""
        if verdict == "ok":
            return None
        if verdict in ("suspect", "failed"):
            return f"the sniffer's verdict is {verdict}" + (f" ({text})" if text else "")
        check = self._service.check
        try:
            probe = checks.probe_function(check)(self._service.primary, check.options, check.timeout)
        except checks.ProbeError as error:
            return f"it cannot be probed: {error}"
        return None if probe.passed else probe.text

    def decided(self, run: str, source: Target, kept: str, by: str) -> None:
        """Write a person's decision, ``take`` or ``merge``, to the redirector's journal; see the verb ``decided``."""
        request = {"verb": "decided", "service": self._service.name, "run": run, "source": source}
        try:
            control.ask(self._config.controller.redirector_socket, {**request, "kept": kept, "by": by})
        except control.ControlError as error:
            raise SyncStepError(str(error)) from None

    def record(self, state: SyncState) -> None:
        """Replace the record."""
        if self._lock is None:
            raise SyncStepError("only the run that holds the lock may write the record")
        place = syncstate.directory(self._state_dir)
        path, new = place / f"{self._service.name}.json", place / f".{self._service.name}.new"
        try:
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), "w") as file:
                os.fchmod(file.fileno(), 0o640)
                file.write(syncstate.dump(state))
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            raise SyncStepError(f"{path}: cannot write: {error.strerror}") from None

    def tell(self, state: SyncState) -> None:
        """Send "NAME sync" to the core; if that fails, the active check reports the same a little later."""
        now, of, limits = time.time(), self._service, syncstate.limits(self._service)
        level, text = syncstate.judge(state, now, *limits)
        numbers = syncstate.perfdata(state, now, *limits)
        result = PassiveResult(of.host, f"{of.name} sync", level, f"{level.name}: {text}", now, perfdata=numbers)
        try:
            TRANSPORTS[self._config.monitoring["transport"]](self._config.monitoring).send([result])
        except (TransportError, KeyError, ImportError) as error:
            raise SyncStepError(f"cannot send the result to the core: {error}") from None

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class RemoteAccess:
    """The same, over ssh from another machine."""

    def __init__(self, config: Config, service: Service, spec: SyncSpec) -> None:
        become_owner(config.controller.state_dir)
        self._host = hosts.host(spec, "controller")
        command = ["failover-sync", "--serve-home", service.name]
        self._process: subprocess.Popen[bytes] = hosts.start(self._host.argv(command, 86400))
        self.holder = ""
        self._ahead = 0.0  # seconds by which the controller's clock is ahead of this machine's

    def _ask(self, op: str, state: SyncState | None = None, **more: str) -> Mapping[str, Any]:
        request = {"op": op} | ({} if state is None else {"state": json.loads(syncstate.dump(state))})
        line = hosts.exchange(self._process, json.dumps(request | more).encode() + b"\n", _REPLY_LIMIT)
        if not line:
            silent, errors = self._process.poll() is None, programs.pipe(self._process.stderr).fileno()
            why = f"none within {_REPLY_LIMIT:.0f} s" if silent else "connection lost"
            os.set_blocking(errors, False)
            with contextlib.suppress(OSError):
                why = programs.last_line(os.read(errors, 65536)) or why
            programs.kill(self._process)
            raise SyncStepError(f"{self._host}: no answer: {why}")
        try:
            reply = json.loads(line)
            if "refused" in reply:
                raise SyncRefusedError(Refusal(reply["refused"]), str(reply["text"]))
            if "error" in reply:
                raise SyncStepError(f"{self._host}: {reply['error']}")
            return dict(reply)
        except (ValueError, KeyError, TypeError):
            raise SyncStepError(f"{self._host}: cannot understand its answer; is it the same version?") from None

    def acquire(self) -> SyncState:
        began = time.time()
        reply = self._ask("acquire")
        try:
            self._ahead = float(reply["now"]) - (began + time.time()) / 2
            self.holder = str(reply["holder"])
            return syncstate.parse(json.dumps(reply["state"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SyncStepError(f"{self._host}: cannot understand its record: {error}") from None

    def now(self) -> float:
        return time.time() + self._ahead

    def standing(self) -> Standing:
        raw = self._ask("standing")
        try:
            return from_json(Standing, raw)
        except RecordError as error:
            raise SyncStepError(f"{self._host}: cannot understand which server serves: {error}") from None

    def decided(self, run: str, source: Target, kept: str, by: str) -> None:
        self._ask("decided", run=run, source=source, kept=kept, by=by)

    def record(self, state: SyncState) -> None:
        self._ask("record", state)

    def tell(self, state: SyncState) -> None:
        self._ask("tell", state)

    def close(self) -> None:
        with programs.ended(self._process):
            pass


ControllerAccess: TypeAlias = LocalAccess | RemoteAccess


def open_access(config: Config, service: Service) -> ControllerAccess:
    """The access that the config asks for: local, or over ssh to the controller."""
    if service.sync is None or service.sync.controller == "local":
        return LocalAccess(config, service)
    return RemoteAccess(config, service, service.sync)


def serve(access: LocalAccess) -> None:
    """The controller's end of RemoteAccess: answer requests until the other end closes the connection."""
    while line := sys.stdin.readline(syncstate.LIMIT):
        try:
            reply = _answer(access, json.loads(line))
        except SyncRefusedError as error:
            reply = {"refused": error.reason, "text": error.text}
        except SyncStepError as error:
            reply = {"error": str(error)}
        except (ValueError, KeyError, TypeError):
            reply = {"error": "bogus message"}
        print(json.dumps(reply), flush=True)


def _answer(access: LocalAccess, request: Mapping[str, Any]) -> Mapping[str, Any]:
    op = request["op"]
    if op == "acquire":
        state = access.acquire()
        return {"state": json.loads(syncstate.dump(state)), "now": access.now(), "holder": access.holder}
    if op == "standing":
        return asdict(access.standing())
    if op == "decided":
        access.decided(request["run"], Target(request["source"]), request["kept"], request["by"])
    else:
        {"record": access.record, "tell": access.tell}[op](syncstate.parse(json.dumps(request["state"])))
    return {}
