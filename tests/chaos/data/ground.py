"""A site on which a round's events are done for real, with clients that write, and the looks at what became of it.

No core runs: the sniffer orders the redirector itself. Each round begins from a copy of the same start, so that it can
be run again alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from check_failover import control, syncstate
from check_failover.syncstate import SyncState
from tests.chaos.data.pair import Second
from tests.chaos.data.sequence import SERVERS
from tests.lab import faults
from tests.lab.daemon import Housed
from tests.lab.netns import SERVICE_ADDRESS, end, freeze, kill, poll, python_argv
from tests.lab.site import BASE, ROOT, environment
from tests.lab.site import SERVERS as ADDRESSES
from tests.lab.slapd import ADMIN, PASSWORD
from tests.lab.synced import SyncedSite
from tests.system.test_rescue import LATE

NFT = "/usr/sbin/nft"
RATE = {"ldap": 12.0, "files": 6.0}  # writes per second; rsync must find a moment without a new file
KEPT = re.compile(r"(primary|standby)(?: \([^)]*\))?: (\S+\.sync/(?:kept|v)-[\w-]+)")
PATIENCE = 10.0  # seconds until what was healed works again
FILES = f"""
[service.sync]
primary = "root@{ADDRESSES["primary"]}"
standby = "root@{ADDRESSES["standby"]}"
from = "{{srv}}/data"
ssh_config = "{{srv}}/../ssh_config"
"""

CONFIG = """\
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix {base}
directory {place}/db
maxsize 67108864
"""


class DataSite(SyncedSite):
    """``kind``: ldap, whose standby nobody but a fail-over sends clients to; files, with rescues as well."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.kind = kind
        writes = {"ldap": "primary", "files": "replicated"}[kind]
        policy = "hold_down = 0\ndamping_half_life = 2\nmax_sync_age = 1000000"
        super().__init__(directory, nagios=False, kannel=False, writes=writes, policy=policy)

    def _preset(self) -> str:
        return super()._preset() if self.kind == "ldap" else FILES.format(srv=self.srv)

    def _write_config(self) -> None:
        super()._write_config()
        text = (
            self.config.read_text()
            .replace("hold_down = 2\n", "")
            .replace("fail_back_passes = 2", "fail_back_passes = 1")
        )
        if self.kind == "files":
            text = text.replace('name = "ldap"', 'name = "files"').replace("port = 389", "port = 80")
            text = text.replace(
                f'type = "ldap"\nbase = "{BASE}"\nattribute = "description"', 'type = "http"\nstatus = [200]'
            )
        self.config.write_text(text)


class Directory:
    """The slapd of one server; see ``faults.Server``."""

    def __init__(self, site: DataSite, who: str) -> None:
        self._site, self._who = site, who
        self._pid_file = site.directory / who / "slapd.pid"

    @property
    def pid(self) -> int:
        return int(poll(lambda: self._pid_file.exists() and self._pid_file.read_text().strip(), 10.0, "slapd's pid"))

    def start(self) -> None:
        self._site.restart(self._who)

    def stop(self) -> None:
        if self.runs():
            kill(self.pid)

    def restrict(self, operation: str | None) -> None:
        raise NotImplementedError

    def runs(self) -> bool:
        try:
            said = Path(f"/proc/{int(self._pid_file.read_text())}/status").read_text()
        except (OSError, ValueError):
            return False
        return not re.search(r"^State:\s[ZX]", said, re.MULTILINE)

    def has(self) -> frozenset[int] | None:
        """The numbers that clients find there; None: it does not answer."""
        url = f"ldap://{ADDRESSES[self._who]}"
        argv = ["/usr/bin/ldapsearch", "-x", "-LLL", "-o", "nettimeout=3", "-l", "3", "-H", url, "-D", ADMIN, "-w"]
        argv = self._site.house.argv(self._who, *argv, PASSWORD, "-b", BASE, "(sn=n*)", "cn")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
        found = frozenset(map(int, re.findall(r"^cn: n(\d+)$", done.stdout, re.MULTILINE)))
        return None if done.returncode else found

    def put_aside(self, place: Path) -> frozenset[int]:
        """What a person finds in a directory: the export, or a database that slapd worked on."""
        text = (place / "data.ldif").read_text() if place.exists() else ""
        if (place / "db").exists():
            config = self._site.directory / "aside.conf"
            config.write_text(CONFIG.format(base=BASE, place=place))
            text += self._site.house.run("controller", "/usr/sbin/slapcat", "-f", str(config), "-b", BASE)
        return frozenset(map(int, re.findall(r"^cn: n(\d+)$", text, re.MULTILINE)))


class Shelf(Housed):
    """The file server of one server."""

    patience = 5.0

    def __init__(self, site: DataSite, who: str) -> None:
        self._place, self._address = site.directory / who / "data", ADDRESSES[who]
        argv = python_argv("tests.lab.shelf", str(self._place), self._address, "80")
        super().__init__(
            site.house, who, argv, site.directory / f"shelf-{who}.log", lambda: "ready" in self.said(), cwd=ROOT
        )

    def start(self) -> None:
        self.stop()
        (self.directory / self.out).write_text("")
        super().start()

    def restrict(self, operation: str | None) -> None:
        raise NotImplementedError

    def runs(self) -> bool:
        return self._process is not None and not self.ended()

    def has(self) -> frozenset[int] | None:
        code = "import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=3)"
        argv = self.house.argv(self.who, sys.executable, "-c", code, f"http://{self._address}/")
        done = subprocess.run(argv, capture_output=True, timeout=20, check=False)
        return None if done.returncode else self.put_aside(self._place)

    def put_aside(self, place: Path) -> frozenset[int]:
        files = place.iterdir() if place.exists() else ()
        return frozenset(int(path.name[1:]) for path in files if path.name.startswith("n"))


class Run:
    """A failover-sync that was started."""

    def __init__(self, ground: Ground, *options: str, other: bool = False) -> None:
        site = ground.site
        who, config = ("other", ground.second.config) if other else ("controller", site.config)
        argv = python_argv("check_failover.sync.run", "--config", str(config), *options, site.kind)
        self.who, self.options, self._out = who, options, site.directory / "run.out"
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                site.house.argv(who, *argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=environment(), cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        self._out = self._out.rename(site.directory / f"run-{self.process.pid}.out")

    def over(self, patience: float) -> bool:
        """Whether it ends within that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience)
        return self.process.poll() is not None

    @property
    def said(self) -> str:
        return self._out.read_text("utf-8", "replace").strip()


class Ground:
    """A context manager."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.site, self.kind = DataSite(directory / "site", kind), kind
        self._start = directory / "start"
        self._parts = contextlib.ExitStack()
        self.server: dict[str, Directory | Shelf] = {}
        self.run: Run | None = None  # in the background
        self.story: list[str] = []
        self.named: set[tuple[str, str]] = set()  # server, path: where a run said that it put data aside
        self._clients: subprocess.Popen[Any] | None = None

    def __enter__(self) -> Ground:
        try:
            self._parts.enter_context(self.site)
            self._build()
            self.second = Second(self.site, self.kind)
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end_clients()
        if self.run is not None:
            end(self.run.process)
        self.second.end()
        if self.kind == "ldap":
            for who in self.server:
                self.server[who].stop()
        self._parts.close()

    # ------------------------------------------------------------ the start of each round

    def _build(self) -> None:
        site = self.site
        for who in SERVERS:
            site.slapd[who].stop()
            self.server[who] = Directory(site, who) if self.kind == "ldap" else Shelf(site, who)
            (site.directory / who / "data").mkdir(exist_ok=True)
            if self.kind == "files":
                shutil.rmtree(site.directory / who / "data")
                (site.directory / who / "data").mkdir()
                (site.directory / who / "data/first").write_text("first\n")
            self.server[who].start()
        for options in (("--adopt",), ()):
            poll(lambda options=options: self._good(*options), 40.0, f"failover-sync {options}", every=0.2)  # type: ignore[misc]
        for who in SERVERS:
            self.server[who].stop()
        for place in self._places():
            self._copy(place, self._start / place.name)

    def _good(self, *options: str) -> bool:
        run = Run(self, *options)
        assert run.over(60.0), run.said
        self.tell(f"{' '.join(options)}: {run.said}")
        return run.process.returncode == 0

    def _places(self) -> Iterator[Path]:
        yield from (self.site.directory / who for who in SERVERS)
        yield self.site.directory / "state"

    def _copy(self, source: Path, to: Path) -> None:
        to.mkdir(parents=True, exist_ok=True)
        names = ("data", "data.sync", "export", "sync", "target")
        subprocess.run(["/bin/rm", "-rf", *(str(to / name) for name in names)], check=True)
        have = [str(source / name) for name in names if os.path.lexists(source / name)]
        subprocess.run(["/bin/cp", "-a", *have, str(to)], check=True)

    def reset(self, *, pair: bool) -> None:
        """Everything as at the start: in step, the primary serves, nothing was reached since."""
        self.second.configure(pair=pair)
        for who in SERVERS:
            self.server[who].stop()
        self.site.kill("redirector")
        for place in self._places():
            self._copy(self._start / place.name, place)
            (place / "journal.jsonl").unlink(missing_ok=True)
        syncstate.peer_record(self.site.directory / "state", self.kind).unlink(
            missing_ok=True
        )  # of a round with a pair
        self.site.house.run("controller", "/usr/sbin/conntrack", "-F")
        for who in SERVERS:
            self.server[who].start()
        self.site.start("redirector")
        self.story.clear()
        self.named.clear()
        poll(lambda: all(self.server[who].has() is not None for who in SERVERS), 20.0, "both servers serve")
        poll(lambda: self.status()["target"] == "primary", 10.0, "the primary serves")
        poll(self._probed, 20.0, "the standby was probed", every=0.1)
        if pair:
            self.second.begin()
        self.begin_clients()

    def _probed(self) -> bool:
        for who in SERVERS:
            with contextlib.suppress(control.ControlError):
                self.ask("sniffer", "probe", target=who)
        known = self.site.sniffer(self.kind)
        return bool(known["standby"]["ok"] and known["target"] == "primary")

    # ------------------------------------------------------------ clients

    def begin_clients(self) -> None:
        self.log = self.site.directory / "clients.log"
        self.log.write_text("")
        argv = python_argv("tests.chaos.data.clients", self.kind, SERVICE_ADDRESS, str(RATE[self.kind]))
        self._clients = self.site.house.start("client", *argv, log=self.log, cwd=ROOT)
        poll(lambda: len(self.acknowledged()) >= 3, 20.0, "clients write")

    def end_clients(self) -> None:
        if self._clients is not None:
            self._clients.kill()
            self._clients.wait()
            self._clients = None

    def rest(self, asleep: bool) -> None:
        """Clients write no more, with their connections open; or they go on."""
        assert self._clients is not None
        if asleep:
            freeze(self._clients.pid)
        else:
            self._clients.send_signal(signal.SIGCONT)

    def writes(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def acknowledged(self) -> frozenset[int]:
        return frozenset(one["number"] for one in self.writes() if one["error"] is None)

    # ------------------------------------------------------------ what a person and the timer do

    def ask(self, daemon: str, verb: str, **more: object) -> dict[str, Any]:
        request = {"verb": verb, "service": self.kind, **more}
        return control.ask(self.site.socket(daemon), request, timeout=20.0)

    def order(self, verb: str, **more: object) -> None:
        """It may be refused."""
        if verb == "fail-back":
            for who in SERVERS:
                with contextlib.suppress(control.ControlError):
                    self.ask("sniffer", "probe", target=who)
        try:
            reply = self.ask("redirector", verb, manual=True, by="chaos", **more)
        except control.ControlError as error:
            reply = {"text": str(error)}
        self.tell(f"{verb}: {reply.get('text') or reply.get('line') or reply}")

    def status(self) -> dict[str, Any]:
        return self.site.status(self.kind)

    def record(self) -> SyncState:
        return syncstate.own(self.site.directory / "state", self.kind)

    def start(self, *options: str, other: bool = False) -> Run:
        self.join(0.0)
        self.run = Run(self, *options, other=other)
        return self.run

    def join(self, patience: float) -> bool:
        """Whether no run goes on, at last after ``patience`` seconds; what it said is part of the story."""
        run = self.run
        if run is None:
            return True
        if not run.over(patience):
            return False
        assert "Traceback" not in run.said, run.said
        self.tell(f"run at {run.who} {' '.join(run.options)} exit {run.process.returncode}: {run.said}")
        self.named |= set(KEPT.findall(run.said))
        self.run = None
        return True

    def kill_run(self, run: Run, phase: str, side: str) -> None:
        """SIGKILL as soon as the run is in that phase: to itself, or to its step on a server."""
        until = time.monotonic() + 8.0
        while run.process.poll() is None and time.monotonic() < until:
            if self._reached(run, phase) and (side == "controller" or self._steps(side)):
                break
            time.sleep(0.002)
        if side == "controller":
            run.process.kill()
            return
        for pid in self._steps(side):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _reached(self, run: Run, phase: str) -> bool:
        """Whether the run is in that phase; "restart": its link has moved and its ``after`` is not over."""
        if phase == "restart":
            receiver = "primary" if {"--reverse", "standby"} & set(run.options) else "standby"
            return (self.site.directory / receiver / "data.sync/pending").exists()
        running = self.record().running
        return running is not None and running.phase == phase

    def _steps(self, side: str) -> list[int]:
        """The processes that ssh started on a server."""
        sshd = self.site.ssh.pid(side)
        found, left = [], [sshd]
        while left:
            pid = left.pop()
            with contextlib.suppress(OSError):
                left += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
                if Path(f"/proc/{pid}/comm").read_text().strip() not in ("sshd", "sshd-session"):
                    found.append(pid)
        return found

    def late(self, *, on: bool) -> None:
        """The primary's first SYN-ACK of each connection is lost, or not any more."""
        empty = "add table inet late\ndelete table inet late\n"
        self.site.house.run("primary", NFT, "-f", "-", input=empty + LATE * on)

    def fault(self, kind: str, who: str) -> None:
        server = self.server[who]
        if kind == "blackhole" or server.runs():
            faults.FAULTS[kind](self.site.house, who, server)

    def heal(self, kind: str, who: str) -> None:
        server = self.server[who]
        if kind == "blackhole":
            faults.heal(self.site.house, who, server, kind)
        elif not server.runs():
            server.start()
        elif kind == "hang":
            with contextlib.suppress(ProcessLookupError):
                os.kill(server.pid, signal.SIGCONT)

    def leases_end(self) -> None:
        """As if the minute were over for which a rescued connection counts."""
        self.site.kill("redirector")
        for path in (self.site.directory / "state" / "target").glob("*.json"):
            saved, now = json.loads(path.read_text()), time.time()
            for one in saved["reached"]:
                if one["end"] is not None:
                    one["end"] = max(one["begin"], min(one["end"], now))
            path.write_text(json.dumps(saved))
        self.site.start("redirector")

    # ------------------------------------------------------------ looks

    def on(self) -> dict[str, frozenset[int]]:
        """What each server has; both must answer."""
        return {who: poll(lambda who=who: self._has(who), PATIENCE, f"the {who} serves")[0] for who in SERVERS}  # type: ignore[misc]

    def _has(self, who: str) -> tuple[frozenset[int]] | None:
        found = self.server[who].has()
        return None if found is None else (found,)

    def kept(self) -> dict[str, frozenset[int]]:
        """What the places have that runs named."""
        srv, found = str(self.site.srv), {}
        journal = "\n".join(entry["line"] for entry in self.site.journal())
        for who, path in self.named | set(KEPT.findall(journal)):
            place = self.site.directory / who / Path(path).relative_to(srv)
            found[path] = self.server[who].put_aside(place)
        return found

    def tell(self, text: str) -> None:
        self.story.append(f"{time.time():.3f} {text}")
