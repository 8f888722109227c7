"""The sync records of a pair: what this controller's runs wrote, and a copy of what the other controller's wrote.

Either controller may run failover-sync. Without the copy the other one would say "never in step", or refuse a flip.
"""

import contextlib
import json
import os
import time
from typing import Any

from check_failover import syncstate
from check_failover.config import Config
from check_failover.records import RecordError


def ours(config: Config) -> dict[str, Any]:
    """The records for the other controller, without those that are damaged here."""
    names = [service.name for service in config.services if service.sync is not None]
    found = {name: syncstate.own(config.controller.state_dir, name) for name in names}
    return {name: json.loads(syncstate.dump(one)) for name, one in found.items() if one.damaged is None}


def heard(config: Config) -> dict[str, float | None]:
    """Until when each run of the other controller holds up a flip here: it switches a copy once it knows that."""
    found = {
        one.name: syncstate.theirs_of(config.controller.state_dir, one.name) for one in config.services if one.sync
    }
    return {name: record.running.until if record.running else None for name, record in found.items()}


def last_word(config: Config) -> float:
    """When the other controller last spoke (Unix time), also to an earlier process; never: now."""
    now, times = time.time(), []
    for service in config.services:
        with contextlib.suppress(OSError):
            times.append(syncstate.peer_record(config.controller.state_dir, service.name).stat().st_mtime)
    return min(now, max(times, default=now))


def keep(config: Config, records: object) -> None:
    """Keep a copy of each record; a disk that refuses hinders no following of targets.

    ``syncstate.read`` checks it. Keys of a newer version are left out.
    """
    for service in config.services:
        raw = records.get(service.name) if isinstance(records, dict) and service.sync is not None else None
        path, text = syncstate.peer_record(config.controller.state_dir, service.name), json.dumps(raw)
        with contextlib.suppress(RecordError):
            text = syncstate.dump(syncstate.parse(text))
        with contextlib.suppress(OSError):
            if raw is not None and not (path.exists() and path.read_text() == text):
                path.parent.mkdir(exist_ok=True)
                new = path.with_name(f".{service.name}.new")
                new.write_text(text)
                new.replace(path)
            elif raw is not None:
                os.utime(path)
