"""Drills: the redirect sends one client to the standby to test the whole chain; all other clients stay.

Kept in memory only. The kernel itself removes the client when the time is over (a set element with a timeout), so a
drill leaves nothing behind, even if a process is killed. A drill never changes a target: the core's event handler and
notification command report here, and the redirector only records that.
"""

import ipaddress
import threading
import time
from dataclasses import replace

from check_failover.control import Message
from check_failover.listening import RequestRefusedError
from check_failover.model import Service, Target
from check_failover.peer import Peer
from check_failover.records import DrillPart, DrillStatus
from check_failover.redirector import Redirect
from check_failover.redirector.repair import quietly
from check_failover.redirector.steering import Steering

LONGEST = 600.0  # seconds
PARTS = ("handler", "notification")  # the programs that the core runs in a drill


class Drills:
    """At most one drill per service. Thread-safe.

    state    call                                     next
    -------  ---------------------------------------  -----------------------------------
    idle     ``begin``                                running
    running  ``report``: the core ran a part          running
    running  ``end``, or ``advance`` past ``until``   idle; the kernel forgets the client
    """

    def __init__(self, redirect: Redirect, steering: Steering) -> None:
        self._redirect, self._steering = redirect, steering
        self._lock = threading.Lock()
        self.running: dict[str, DrillStatus] = {}  # service -> its drill
        self._known: dict[str, frozenset[tuple[Target, int]]] = {}  # its client's earlier connections prove nothing

    def begin(self, service: Service, message: Message, by: str) -> Message:
        """Send the client to the standby. Raises RequestRefusedError, RedirectError, StateError."""
        client, seconds = _client(service, message.get("client")), message.get("seconds")
        if not isinstance(seconds, int | float) or not 1 <= seconds <= LONGEST:
            raise RequestRefusedError(f"drill: seconds must be a number from 1 to {LONGEST:.0f}")
        with self._lock:
            if service.name in self.running:
                raise RequestRefusedError(f"drill: {self.running[service.name].id} goes on; wait for its end")
            if self._steering.targets()[service.name] is not Target.PRIMARY:
                raise RequestRefusedError("drill: the standby serves already: fail back first")
            if not self._redirect.drills:
                client = None
            elif client is None:
                raise RequestRefusedError("drill: no test client: --from ADDRESS, or test_client in the config")
            known = frozenset() if client is None else self._redirect.answered(service, client)
            where = f"{client} goes to the standby {service.standby}" if client else "the redirect is left out"
            text = f"{where}, for {seconds:.0f} s at most"
            if client is not None:
                self._steering.reaching.drill(service.name, seconds)
                self._redirect.send_to_standby(service, client, seconds)
            entry = self._steering.note(service.name, "drill", by, text)
            self._known[service.name] = known
            self.running[service.name] = DrillStatus(entry.id, client, by, time.time() + seconds, {})
        return {"id": entry.id, "client": client, "in_use": any(target is Target.PRIMARY for target, _ in known)}

    def report(self, service: Service, message: Message, peer: Peer) -> Message:
        """The core ran its event handler or its notification command. Raises RequestRefusedError."""
        part, said = message.get("part"), message.get("id")
        with self._lock:
            drill = self.running.get(service.name)
            if drill is None or drill.id != said or part not in PARTS:
                raise RequestRefusedError("drilled: no such drill goes on (a late result of an older one?)")
            problem = message.get("problem")
            heard = DrillPart(time.time(), peer.uid, str(problem) if problem else None)
            self.running[service.name] = replace(drill, parts={**drill.parts, str(part): heard})
        return {"text": f"drill {drill.id}: heard; a drill moves nothing"}

    def end(self, service: Service, message: Message, by: str) -> Message:
        """``failoverctl drill`` has finished. Raises RequestRefusedError."""
        failed = message.get("failed")
        with self._lock:
            drill = self.running.get(service.name)
            if drill is None or drill.id != message.get("id"):
                raise RequestRefusedError("drill-end: no such drill goes on")
            self._forget(service, drill)
            text = f"drill {drill.id} failed: {failed}"[:500] if failed else f"drill {drill.id} passed"
            self._steering.note(service.name, "drill-end", by, text, parts=drill.parts)
        return {"text": text}

    def advance(self, service: Service) -> None:
        """End a drill whose ``failoverctl`` was killed; called every few seconds. Raises RedirectError."""
        with self._lock:
            drill = self.running.get(service.name)
            if drill is not None and time.time() > drill.until:
                self._forget(service, drill)
                text = f"drill {drill.id}: its time is over and no program ended it"
                self._steering.note(service.name, "drill-end", "redirector", text, parts=drill.parts)

    def status(self, service: Service) -> DrillStatus | None:
        """The state of a running drill. Raises RedirectError."""
        drill = self.running.get(service.name)
        if drill is None:
            return None
        now = frozenset() if drill.client is None else self._redirect.answered(service, drill.client)
        return replace(drill, served=any(target is Target.STANDBY for target, _ in now - self._known[service.name]))

    def _forget(self, service: Service, drill: DrillStatus) -> None:
        del self.running[service.name]
        if drill.client is not None:
            self._redirect.send_to_standby(service, None, 0.0)
            quietly(lambda: self._steering.reaching.drill(service.name, 0.0))


def _client(service: Service, said: object) -> str | None:
    if said is None:
        return None
    try:
        address = ipaddress.ip_address(str(said))
    except ValueError:
        raise RequestRefusedError(f"drill: {said!r} is not an IP address") from None
    if address.version != service.address.family:
        raise RequestRefusedError(f"drill: {address} is not IPv{service.address.family} as {service.address} is")
    if address.compressed in (service.primary.address, service.standby.address, service.address.address):
        raise RequestRefusedError(f"drill: {address} is a server's or the service's own address; name a client's")
    return address.compressed
