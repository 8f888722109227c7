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
from typing import Any

from tests.lab.netns import end, poll

ADDRESSES = {"primary": "127.0.0.1", "standby": "127.0.0.2"}


class Servers:
    """Primary and standby as ssh targets; a context manager that ends what it started."""

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
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Servers:
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
        try:
            for who, address in self.addresses.items():
                self._serve(who, address, port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()
        for process in self._processes:
            end(process)
        self._shared.cleanup()

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

    def _serve(self, who: str, address: str, port: int) -> None:
        (self.place / who).mkdir(exist_ok=True)
        config = self.place / f"sshd_{who}"
        config.write_text(
            f"Port {port}\nListenAddress {address}\nHostKey {self.place}/host\nPidFile none\n"
            f"UsePAM no\nStrictModes no\nAuthorizedKeysFile {self.place}/authorized\nPermitRootLogin yes\nUseDNS no\n"
            "MaxStartups 100\n"
        )
        log = self.place / f"sshd_{who}.log"
        # root's own .bashrc is not read: what it runs would be measured and its output would spoil rsync's protocol
        script = "if [ -e ~/.bashrc ]; then mount --bind /dev/null ~/.bashrc; fi; "
        script += 'mount --bind "$1" "$2" && exec /usr/sbin/sshd -D -e -f "$3"'
        argv = [*self._prefix(who), "/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh"]
        argv += [str(self.place / who), str(self.srv), str(config)]
        with log.open("ab") as out:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        self._processes.append(process)
        poll(lambda: f"Server listening on {address}" in log.read_text(), 10, f"sshd of the {who}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
