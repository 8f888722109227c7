"""What the kernel's rules say of each service, read from nft's own words."""

import re

NFT = "/usr/sbin/nft"
TABLE = ("list", "table", "inet", "check_failover")


def _elements(said: str, name: str) -> str:
    found = re.search(rf"\t(?:set|map) {name} {{\n(.*?)\n\t}}", said, re.DOTALL)
    return found[1] if found else ""


def targets(said: str) -> dict[str, str]:
    """Service -> "primary" or "standby"; a service whose new connections meet no rule is missing."""
    found = {}
    for version in (4, 6):
        on_standby = _elements(said, f"on_standby{version}")
        for where, name in re.findall(
            r"(\S+ \. \S+ \. \S+) : jump connect_(\w+)", _elements(said, f"connect{version}")
        ):
            if re.search(rf"\tchain connect_{name} {{\n.*dnat ip6? to", said, re.DOTALL):
                found[name] = "standby" if re.search(rf"{re.escape(where)}[\s,}}]", on_standby) else "primary"
    return found


def marked(said: str, name: str) -> dict[str, set[str]]:
    """Service -> its servers in the set ``dead`` or ``refusing``."""
    marks = {
        int(mark, 16): of for mark, of in re.findall(r"(0x\w+) : jump packets_(\w+)", _elements(said, "connections"))
    }
    found: dict[str, set[str]] = {of: set() for of in marks.values()}
    for mark in re.findall(r"0x\w+", _elements(said, name)):
        server = "standby" if int(mark, 16) & 1 << 20 else "primary"
        found[marks[int(mark, 16) & ~(1 << 20)]].add(server)
    return found
