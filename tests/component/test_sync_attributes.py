"""What belongs to a file beside its contents arrives, or is named; what is unsafe on another machine is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from check_failover.syncstate import Refusal
from tests.lab.syncing import (  # noqa: F401
    Syncing,
    contents,
    fill,
    ok,
    refused,
    script,
    servers_fixture,
    syncing_fixture,
)

pytestmark = pytest.mark.component

UNIT = Path(__file__).parents[2] / "nagios-conf/systemd/failover-sync@.service"
# the oldest rsync that people have was built without both
PLAIN = """case " $* " in
*" --version "*) rsync --version | sed 's/ ACLs/ no ACLs/; s/ xattrs/ no xattrs/' ;;
*) exec rsync "$@" ;;
esac"""


def privileged(primary: Path) -> None:
    """Files with an ACL, an attribute, a capability, holes, and a setgid directory of a foreign group."""
    fill(primary, {"acl": "1", "attribute": "2", "capability": "3"})
    subprocess.run(["/usr/bin/setfacl", "-m", "u:1234:rw", str(primary / "acl")], check=True)
    os.setxattr(primary / "attribute", "user.origin", b"here")
    subprocess.run(["/usr/sbin/setcap", "cap_net_bind_service=ep", str(primary / "capability")], check=True)
    with (primary / "holes").open("wb") as file:
        file.truncate(20 << 20)
    (primary / "setgid").mkdir()
    os.chown(primary / "setgid", 1234, 4321)
    (primary / "setgid").chmod(0o2775)


def said(*argv: str | Path) -> str:
    """What a tool prints."""
    return subprocess.run(list(map(str, argv)), text=True, capture_output=True, check=True).stdout


@pytest.mark.parametrize("relay", [True, False])
def test_attributes_arrive(syncing: Syncing, relay: bool) -> None:
    """With a relay and without; the second run finds nothing that differs."""
    privileged(syncing.primary)
    if not relay:
        to = f'to = "{syncing.servers.srv}/data"'
        syncing.configure(to, primary="local", source=str(syncing.primary))
    assert "not copied" not in ok(syncing.sync())
    assert "user:1234:rw-" in said("/usr/bin/getfacl", "-cp", syncing.standby / "acl")
    assert os.getxattr(syncing.standby / "attribute", "user.origin") == b"here"
    assert "cap_net_bind_service=ep" in said("/usr/sbin/getcap", syncing.standby / "capability")
    assert (syncing.standby / "holes").stat().st_blocks < 2000
    seen = (syncing.standby / "setgid").stat()
    assert (seen.st_mode & 0o7777, seen.st_uid, seen.st_gid) == (0o2775, 1234, 4321)
    ok(syncing.sync())
    assert not syncing.state().changed


@pytest.mark.parametrize("plain", [True, False])
def test_the_unit_keeps_setgid_bits(syncing: Syncing, plain: bool) -> None:
    """With the unit's own capabilities, as root with a relay: in step, also where rsync keeps no attributes."""
    match = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.M)
    assert match
    allowed = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in match[1].split())
    fill(syncing.primary, {"file": "1"})
    (syncing.primary / "setgid").mkdir()
    os.chown(syncing.primary / "setgid", 1234, 4321)
    (syncing.primary / "setgid").chmod(0o2775)
    if plain:
        syncing.configure(f'rsync_path = "{script(syncing.place / "plain", PLAIN)}"')
    argv = ["/usr/bin/setpriv", "--bounding-set", f"-all,{allowed}", "--clear-groups", *syncing.argv()]
    done = subprocess.run(argv, text=True, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (syncing.standby / "setgid").stat().st_mode & 0o7777 == 0o2775


def test_what_an_old_rsync_cannot_keep_is_named(syncing: Syncing) -> None:
    """Once in the output and in the record, and in what Nagios sees."""
    syncing.configure(f'rsync_path = "{script(syncing.place / "plain", PLAIN)}"')
    text = "not copied: ACLs (rsync on the standby, primary) and extended attributes (rsync on the standby, primary)"
    assert text in ok(syncing.sync())
    assert text in syncing.state().note
    assert text in syncing.check().stdout


def test_unsafe_files_are_refused_with_their_names(syncing: Syncing) -> None:
    """All kinds; the first five and how many there are. The standby keeps its copy."""
    ok(syncing.sync())
    good, primary = contents(syncing.standby), syncing.primary
    kinds = {
        "a setuid": "a setuid (setuid root)",
        "b setgid": "b setgid (setgid program)",
        "c fifo": "c fifo (FIFO or socket)",
        "d device": "d device (device)",
        "e link": "e link -> ../../etc/passwd",
        "f -> link": "f -> link -> /etc/passwd",
        "g socket": "g socket (FIFO or socket)",
    }
    fill(primary, {"a setuid": "1", "b setgid": "2"})
    (primary / "a setuid").chmod(0o4755)
    (primary / "b setgid").chmod(0o2755)
    os.mkfifo(primary / "c fifo")
    os.mknod(primary / "d device", 0o020600, os.makedev(1, 3))
    (primary / "e link").symlink_to("../../etc/passwd")
    (primary / "f -> link").symlink_to("/etc/passwd")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(primary / "g socket"))
    shown = ", ".join(list(kinds.values())[:5])
    text = f"7 unsafe to copy: {shown} and 2 more; exclude them, or set unsafe"
    refused(syncing, syncing.sync(), Refusal.UNSAFE, text)
    assert contents(syncing.standby) == good
    excluded = list(kinds)
    while excluded:
        name = excluded.pop()
        syncing.configure(f"exclude = {[f'/{other}' for other in kinds if other != name]!r}".replace("'", '"'))
        refused(syncing, syncing.sync(), Refusal.UNSAFE, f"1 unsafe to copy: {kinds[name]}; exclude")


def test_links_within_the_tree_are_safe(syncing: Syncing) -> None:
    """Relative ones, and absolute ones to where the tree is on both servers."""
    (syncing.primary / "d0/up").symlink_to("../d1/f1")
    (syncing.primary / "there").symlink_to(f"{syncing.servers.srv}/data/d1")
    ok(syncing.sync())
    assert (syncing.standby / "d0/up").readlink() == Path("../d1/f1")


def test_unsafe_files_are_kept_on_demand(syncing: Syncing) -> None:
    """unsafe = "keep": they arrive as they are, with a relay too."""
    fill(syncing.primary, {"setuid": "1"})
    (syncing.primary / "setuid").chmod(0o4755)
    (syncing.primary / "link").symlink_to("/etc/passwd")
    os.mkfifo(syncing.primary / "fifo")
    syncing.configure('unsafe = "keep"')
    ok(syncing.sync())
    assert (syncing.standby / "setuid").stat().st_mode & 0o7777 == 0o4755
    assert (syncing.standby / "link").readlink() == Path("/etc/passwd")
    assert (syncing.standby / "fifo").is_fifo()


@pytest.mark.parametrize("seconds", [9, -90])
def test_a_giver_with_another_clock_is_told(syncing: Syncing, seconds: int) -> None:
    """Its date is measured within a step of the run, and kept in the record."""
    bin_dir = syncing.place / "bin"
    bin_dir.mkdir()
    script(bin_dir / "date", f'exec /bin/date -d "{seconds} seconds" "$@"')
    servers = syncing.servers
    key = (servers.place / "id.pub").read_text()
    gate = script(
        syncing.place / "gate",
        f'case $SSH_CONNECTION in *" 127.0.0.1 "*) PATH={bin_dir}:$PATH ;; esac\n'
        'exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"',
    )
    servers.disconnect()
    servers.authorise(f'command="{gate}" {key}')
    try:
        line = ok(syncing.sync())
    finally:
        servers.disconnect()
        servers.authorise(key)
    assert abs(syncing.state().skew - seconds) < 3
    assert "; the primary's clock is " in line
    assert ("ahead of the controller's" if seconds > 0 else "behind the controller's") in line
    ok(syncing.sync())
    assert "clock" not in ok(syncing.sync())
