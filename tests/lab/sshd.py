"""Two servers that are reached by ssh, on loopback: real sshd, own keys, and a file system of their own at one path.

Each sshd lives in a mount namespace where ``PLACE/srv`` is that server's directory, so both see their data at the same
path, as real servers do; the test sees them as ``PLACE/primary`` and ``PLACE/standby``. With ``addresses`` of their
own and a ``prefix`` for their commands they are the servers of a house of network namespaces.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.lab.daemon import Daemon, Program

ADDRESSES = {"primary": "127.0.0.1", "standby": "127.0.0.2"}


class Sshd(Program):
    """That of one server."""

    limit, patience = 10.0, 5.0

    def __init__(self, place: Path, who: str, address: str, port: int, srv: Path, prefix: Sequence[str]) -> None:
        self.directory, self.who, self.address, self._srv, self._prefix = place, who, address, srv, prefix
        self.out = f"sshd_{who}.log"
        (place / who).mkdir(exist_ok=True)
        (place / f"sshd_{who}").write_text(
            f"Port {port}\nListenAddress {address}\nHostKey {place}/host\nPidFile none\n"
            f"UsePAM no\nStrictModes no\nAuthorizedKeysFile {place}/authorized\nPermitRootLogin yes\nUseDNS no\n"
            "MaxStartups 100\n"
        )

    def argv(self) -> list[str]:
        # root's own .bashrc is not read: what it runs would be measured and its output would spoil rsync's protocol
        script = "if [ -e ~/.bashrc ]; then mount --bind /dev/null ~/.bashrc; fi; "
        script += 'mount --bind "$1" "$2" && exec /usr/sbin/sshd -D -e -f "$3"'
        argv = [*self._prefix, "/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh"]
        return [*argv, str(self.directory / self.who), str(self._srv), str(self.directory / f"sshd_{self.who}")]

    def serves(self) -> bool:
        return f"Server listening on {self.address}" in self.said()


class Servers(Daemon):
    """Primary and standby as ssh targets."""

    def __init__(
        self,
        place: Path,
        addresses: Mapping[str, str] = ADDRESSES,
        prefix: Callable[[str], Sequence[str]] = lambda _who: (),
    ) -> None:
        self.place, self.addresses, self._prefix = place, addresses, prefix
        self.srv = place / "srv"
        self.ssh_config = place / "ssh_config"
        self.targets = {who: f"root@{address}" for who, address in addresses.items()}
        self._shared = tempfile.TemporaryDirectory(prefix="cfs")  # a socket's path must be short
        self._sshds: list[Sshd] = []

    def start(self) -> None:
        self.srv.mkdir(exist_ok=True)
        Path("/run/sshd").mkdir(exist_ok=True)
        for key in ("host", "id"):
            self._keygen(key)
        (self.place / "authorized").write_text((self.place / "id.pub").read_text())
        port = _free_port()
        public = (self.place / "host.pub").read_text().split()
        (self.place / "known").write_text(
            "".join(f"[{a}]:{port} {public[0]} {public[1]}\n" for a in self.addresses.values())
        )
        self.ssh_config.write_text(
            f"Host *\n Port {port}\n IdentityFile {self.place}/id\n IdentitiesOnly yes\n"
            f" UserKnownHostsFile {self.place}/known\n GlobalKnownHostsFile /dev/null\n"
            f" ControlMaster auto\n ControlPath {self._shared.name}/%r@%h\n ControlPersist 20\n"  # a handshake: 0.2 s
        )
        for who, address in self.addresses.items():
            self._sshds.append(Sshd(self.place, who, address, port, self.srv, self._prefix(who)))
            self._sshds[-1].start()

    def stop(self) -> None:
        self.disconnect()
        for sshd in self._sshds:
            sshd.stop()
        self._shared.cleanup()

    def small(self, who: str, path: str, size: str) -> None:
        """Mount a file system of that size at a path below ``srv``; it ends with that server."""
        (self.place / who / path).mkdir(exist_ok=True)
        said = self.on(who, f"mount -t tmpfs -o size={size} tmpfs {self.srv / path}")
        assert not said, said

    def on(self, who: str, command: str) -> str:
        """What a shell command prints in that server's file systems."""
        argv = ["/usr/bin/nsenter", "--mount", "--target", str(self.pid(who)), "/bin/sh", "-c", command]
        done = subprocess.run(argv, text=True, capture_output=True, check=False)
        return done.stdout + done.stderr

    def pid(self, who: str) -> int:
        """That of a server's sshd."""
        return self._sshds[list(self.addresses).index(who)].pid

    def authorise(self, line: str) -> None:
        """Replace the accepted key line, e.g. by one with a forced command."""
        (self.place / "authorized").write_text(line)

    def disconnect(self) -> None:
        """End the shared connections, so that the next step must connect anew."""
        for target in self.targets.values():
            argv = ["/usr/bin/ssh", "-F", str(self.ssh_config), "-O", "exit", target]
            subprocess.run(argv, capture_output=True, check=False)

    def _keygen(self, name: str) -> None:
        subprocess.run(
            ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.place / name)], check=True
        )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
