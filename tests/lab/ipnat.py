"""The ipnat of a site whose redirect is ipfilter: ``Site(redirect="ipfilter")``. Its rules really move packets.

The tool's language and what its calls mean are ipfilter's; the kernel that moves the packets is Linux's, see
``tests/fixtures/ipfilter/linux.py``.
"""

from __future__ import annotations

from pathlib import Path

from tests.fixtures.ipfilter.standin import Kernel
from tests.lab.netns import House

NAT = "add table inet ipnat; add chain inet ipnat in { type nat hook prerouting priority dstnat; }"


class Ipnat(Kernel):
    """It works in its caller's network namespace: failover-redirector's, the controller's."""

    def __init__(self, directory: Path, house: House) -> None:
        super().__init__(directory, below=("linux.py",))
        house.run("controller", "/usr/sbin/nft", NAT)  # conntrack's settings are there from the first NAT chain on
        house.run("controller", "/usr/sbin/sysctl", "-qw", "net.netfilter.nf_conntrack_acct=1")

    @property
    def config(self) -> str:
        """``[controller.ipfilter]``."""
        return f'[controller.ipfilter]\nipnat = "{self.path}"\nrules = "{self.directory}/ipnat.rules"\n'
