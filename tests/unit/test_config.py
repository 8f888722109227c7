"""Config: what a good file becomes, and the exact line for each kind of bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_failover.config import ConfigError, load
from check_failover.config_shape import schema
from check_failover.model import Endpoint

GOOD = Path(__file__).parent.parent / "fixtures" / "config" / "good.toml"

# what is replaced in the good file, by what, and the message that follows the file's name
BROKEN = [
    ('redirect = "nftables"', 'redirect = "iptables"', "$.controller.redirect: 'iptables' is not one of"),
    (
        'client_interface = "cl0"',
        'client_interfaces = "cl0"',
        "$.controller: unknown key 'client_interfaces', is it 'client_interface'? (",
    ),
    (
        'gateway = "kannel"',
        'gateway = "kannel"\npasword_file = "/p"',
        "$.sms: unknown key 'pasword_file', is it 'passw",
    ),
    (
        'port = 389\nprimary = "10',
        'port = 99999\nprimary = "10',
        "$.service[0].port: 99999 is greater than the maximum of 65535 (TCP or UDP port",
    ),
    (
        'primary = "10.0.0.11"',
        'primary = "ldap1.example.org"',
        "$.service[0].primary: 'ldap1.example.org' is not an IP address; names are not looked up",
    ),
    ('primary = "10.0.0.11"', 'primary = "10.0.0.12:1389"', "$.service[0].standby: the same as the primary"),
    ('primary = "10.0.0.11"', 'primary = "10.0.0.11:0"', "$.service[0].primary: port 0 is not between 1 and 65535"),
    (
        'primary = "10.0.0.11"',
        'primary = "192.0.2.10"',
        "$.service[0].address: the service address must not be a server's own",
    ),
    ('primary = "10.0.0.11"', 'primary = "2001:db8::1"', "$.service[0].primary: [2001:db8::1]:389 is not IPv4"),
    ('primary = "10.0.0.11"', "", "$.service[0]: 'primary' is a required property"),
    ('standby = "10.0.0.12:1389"', 'standby = "224.0.0.1"', "$.service[0].standby: 224.0.0.1 cannot be a server's"),
    (
        'address = "192.0.2.10"',
        'address = "192.0.2.10:636"',
        "$.service[0].address: the service address has no port of its own",
    ),
    ('name = "ldap6"', 'name = "ldap"', "$.service[1].name: 'ldap' is service 0 too"),
    ('name = "ldap6"', 'name = "a b"', "$.service[1].name: 'a b' does not match: want a letter, then at most 14"),
    (
        'address = "2001:db8::10"',
        'address = "::ffff:192.0.2.10"',
        "$.service[1].address: ::ffff:192.0.2.10 is an IPv4 address written as IPv6; give 192.0.2.10",
    ),
    (
        'primary = "10.0.0.11"',
        'primary = "10.0.0.11"\nsource_nat = "10.0.0.11"',
        "$.service[0].source_nat: 10.0.0.11 is a server's own address; give the controller's",
    ),
    ('address = "2001:db8::10"', 'address = "fe80::1%cl0"', "$.service[1].address: fe80::1%cl0 has a scope"),
    ('base = "dc=example,dc=org"', "", "$.service[0].check: 'base' is a required property (the application probe)"),
    ('base = "dc=example,dc=org"', 'bse = "x"\nbase = ""', "$.service[0].check: unknown key 'bse', is it 'base'?"),
    ('base = "dc=example,dc=org"', 'base = "example"', "$.service[0].check.base: 'example' does not match: want a DN"),
    ('protocol = "tcp"', 'protocol = "udp"', "$.service[0].protocol: ldap is spoken over tcp, not udp"),
    (
        'primary = "10.0.0.11"',
        'primary = "10.0.0.11"\ntest_client = "10.0.0.12"',
        "$.service[0].test_client: 10.0.0.12 is a server's or the service's own address",
    ),
    (
        'type = "tcp"',
        'type = "tcp"\ntls = "yes"',
        "$.service[1].check.tls: 'yes' is not of type 'boolean' (whether to speak TLS from the start, verified)",
    ),
    ('type = "tcp"', 'type = "dns"', "$.service[1].check: 'name' is a required property"),
    ('type = "tcp"', 'type = "tcp"\nname = "x"', "$.service[1].check: unknown key 'name'"),
    (
        'transport = "command_file"',
        'transport = "icinga2"',
        "$.monitoring: 'url' is a required property",
    ),
    (
        'transport = "command_file"',
        'transport = "icinga2"\nurl = "https://i:5665"\nca_file = "/ca"',
        "$.monitoring: 'username' is a required property",
    ),
    (
        'transport = "command_file"',
        'transport = "icinga2"\nurl = "http://i:5665"\nca_file = "/ca"\nusername = "u"\npassword_file = "/p"',
        "$.monitoring.url: 'http://i:5665' does not match",
    ),
    (
        'transport = "command_file"',
        'transport = "icinga2"\nurl = ["https://i", "https://j"]\nca_file = "/ca"\nusername = "u"\n'
        'password_file = "/p"\nserver_name = ["i"]',
        "$.monitoring.server_name: give one name, or a list as long as that of url",
    ),
    (
        'transport = "command_file"',
        'certificate = "/c"',
        "$.monitoring: 'key_file' is a dependency of 'certificate'",
    ),
    (
        "hold_down = 60",
        "hold_down = -1",
        "$.service[0].policy.hold_down: -1 is less than the minimum of 0 (minimum time between two flips",
    ),
    (
        'client_interface = "cl0"',
        'client_interface = "cl0"\npeer = "-oProxyCommand=x"',
        "$.controller.peer: '-oProxyCommand=x' does not match",
    ),
    ('gateway = "kannel"', 'gateway = "modem"', "$.sms.gateway: 'modem' is not one of ['kannel', 'smstools', 'gammu']"),
    ('gateway = "kannel"', 'gateway = "smstools"', "$.sms: unknown key"),
    ('gateway = "kannel"', 'gateway = "kannel"\nreceipt_url = "localhost"', "$.sms.receipt_url: 'localhost' does not"),
    ('gateway = "kannel"', 'gateway = "kannel"\nsecond = {gateway = "kannel"}', "$.sms.second: 'url' is a required"),
    ("hold_down = 60", "holddown = 60", "$.service[0].policy: unknown key 'holddown'"),
    (
        'host = "ldap.example.org"\nprotocol = "tcp"\naddress = "192',
        'host = "a;b"\nprotocol = "tcp"\naddress = "192',
        "$.service[0].host: 'a;b' does not match: want the name of a Nagios object, without spaces (",
    ),
    ("hold_down = 60", "damping_half_life = 0", "$.service[0].policy.damping_half_life: 0 is less than or equal to"),
    ('gateway = "kannel"', 'gateway = "pigeon"', "$.sms.gateway: 'pigeon' is not one of"),
    ("[controller]", "[controller", "not TOML: "),
    ("hold_down = 60", "hold_down = nan", "nan: times and shares must be finite numbers"),
    ("hold_down = 60", "hold_down = 1e999", "1e999: times and shares must be finite numbers"),
]


def test_a_good_config_is_frozen_into_records() -> None:
    """Addresses are compressed, ports inherited, defaults filled in."""
    config = load(GOOD)
    ldap, ldap6 = config.services
    assert ldap.primary == Endpoint("10.0.0.11", 389)
    assert ldap.standby == Endpoint("10.0.0.12", 1389)
    assert str(ldap6.standby) == "[2001:db8:1::12]:1389"
    assert ldap6.primary.address == "2001:db8:1::11"
    assert config.controller.client_interfaces == ("cl0",)
    assert config.controller.redirector_socket == Path("/run/check_failover/redirector.sock")
    assert config.service("ldap") is ldap


def test_without_a_sync_table_the_sync_age_is_no_criterion() -> None:
    """Nobody measures the age then, so max_sync_age must not forbid every fail-over."""
    assert load(GOOD).services[0].policy.max_sync_age is None


@pytest.mark.parametrize(("old", "new", "message"), BROKEN, ids=[f"{i}" for i in range(len(BROKEN))])
def test_a_bad_config_is_refused_with_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The line names the file, the key and what is wrong."""
    text = GOOD.read_text()
    assert old in text
    path = tmp_path / "config.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff", "not UTF-8 at byte 0"), (b"", "$: 'service' is a required property")]
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, message: str) -> None:
    """Binary and empty files get their own line."""
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message.replace("$", r"\$")):
        load(path)


def test_one_table_for_all_services_is_told_shortly(tmp_path: Path) -> None:
    """[service] in place of [[service]]: what is wrong stands in the line, not the whole table."""
    path = tmp_path / "config.toml"
    table = 'name = "ldap"\nhost = "h"\nprotocol = "tcp"\naddress = "192.0.2.10"\nport = 389\n'
    path.write_text("[service]\n" + table)
    with pytest.raises(
        ConfigError, match=r"\$\.service: a table is not of type 'array' \(.* one \[\[service\]\] table"
    ):
        load(path)
    path.write_text("[[services]]\n" + table)
    with pytest.raises(ConfigError, match=r"\$: unknown key 'services', is it 'service'\?$"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error of the operating system is passed on with the path."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read: No such file"):
        load(tmp_path / "none.toml")


def test_an_unknown_service_lists_the_known_ones() -> None:
    """A typing error on a command line is answered with the names that exist."""
    with pytest.raises(ConfigError, match=r"no service 'ldpa'; configured are: ldap, ldap6"):
        load(GOOD).service("ldpa")


def _leaves(node: object, path: str = "$") -> list[tuple[str, dict[str, object]]]:
    found: list[tuple[str, dict[str, object]]] = []
    if isinstance(node, dict):
        for name, sub in node.get("properties", {}).items():
            found.append((f"{path}.{name}", sub))
        for key, sub in node.items():
            found += _leaves(sub, f"{path}.{key}")
    elif isinstance(node, list):
        for sub in node:
            found += _leaves(sub, path)
    return found


def test_every_key_of_the_schema_says_what_it_means() -> None:
    """The meaning is what a person reads behind an error."""
    silent = [
        path
        for path, sub in _leaves(schema())
        if "description" not in sub
        and not str(sub.get("$ref", "")).startswith(("#/$defs/check", "#/$defs/policy"))
        and "const" not in sub
    ]
    assert silent == []


def test_a_deadline_that_nobody_can_keep_is_refused(tmp_path: Path) -> None:
    """ipfilter has no way to cut what a drain leaves, so a deadline there would be a promise."""
    path = tmp_path / "config.toml"
    text = GOOD.read_text().replace("hold_down = 60", "drain_deadline = 60")
    path.write_text(text)
    assert load(path).services[0].policy.drain_deadline == 60
    path.write_text(text.replace('redirect = "nftables"', 'redirect = "ipfilter"'))
    with pytest.raises(ConfigError, match=r"\$\.service\[0\]\.policy\.drain_deadline: ipfilter cannot cut"):
        load(path)
