"""``[service.sync]``: what it becomes, and the exact line for each kind of bad one."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_failover.config import ConfigError, load
from check_failover.model import SyncSpec
from tests.unit.test_config import GOOD


def with_sync(tmp_path: Path, table: str) -> Path:
    """The good config with that ``[service.sync]`` for its first service."""
    path = tmp_path / "config.toml"
    path.write_text(GOOD.read_text().replace("[[service]]", "[[service]]\n", 1))
    text = path.read_text()
    at = text.index("[[service]]", text.index("[[service]]") + 1)
    path.write_text(text[:at] + "[service.sync]\n" + table + "\n" + text[at:])
    return path


def test_the_servers_addresses_are_the_ssh_targets(tmp_path: Path) -> None:
    """Nothing but a path is needed; the copy is served where it is read from."""
    config = load(with_sync(tmp_path, 'from = "/srv/www/"'))
    assert config.services[0].sync == SyncSpec(
        primary="10.0.0.11", standby="10.0.0.12", source_path="/srv/www", copy_path="/srv/www"
    )
    assert config.services[1].sync is None


def test_with_a_sync_table_the_sync_age_counts(tmp_path: Path) -> None:
    """max_sync_age was written down, and now somebody measures it."""
    assert load(with_sync(tmp_path, 'from = "/srv/www"')).services[0].policy.max_sync_age == 1800


def test_commands_are_argument_lists(tmp_path: Path) -> None:
    """They arrive as tuples, untouched."""
    sync = (
        load(with_sync(tmp_path, 'from = "/x"\nafter = ["/usr/sbin/rndc", "reload", "a b"]\nexclude = ["/db"]'))
        .services[0]
        .sync
    )
    assert sync is not None
    assert sync.after == ("/usr/sbin/rndc", "reload", "a b")
    assert sync.exclude == ("/db",)


def test_replicating_servers_need_no_path(tmp_path: Path) -> None:
    """syncrepl is compared only."""
    sync = load(with_sync(tmp_path, 'method = "syncrepl"')).services[0].sync
    assert sync is not None
    assert sync.method == "syncrepl"


@pytest.mark.parametrize(
    ("said", "table", "writes"),
    [
        ("", 'from = "/srv/www"', "primary"),
        ("", 'method = "syncrepl"', "replicated"),
        ('writes = "none"', 'from = "/srv/www"', "none"),
        ('writes = "primary"', 'method = "syncrepl"', "primary"),
        ("", 'method = "mariadb"\nuser = "u"\npassword_file = "/p"', "primary"),
    ],
)
def test_where_writes_go(tmp_path: Path, said: str, table: str, writes: str) -> None:
    """What rsync copies is overwritten by the next run, unless the administrator says that nothing is written."""
    path = with_sync(tmp_path, table)
    path.write_text(path.read_text().replace("[[service]]", f"[[service]]\n{said}", 1))
    first, second = load(path).services
    assert (first.writes, second.writes) == (writes, "replicated")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "$.service[0].sync: 'from' is a required property"),
        ('from = "/a/../b"', "$.service[0].sync.from: /a/../b has a .. in it"),
        ('from = "/a b"', "$.service[0].sync.from: '/a b' does not match"),
        ('from = "relative"', "$.service[0].sync.from: 'relative' does not match"),
        ('from = "/"', "$.service[0].sync.from: '/' does not match"),
        ('from = "/a"\nfrm = "/a"', "$.service[0].sync: unknown key 'frm'"),
        ('from = "/a"\nprimary = "-oProxyCommand=x"', "$.service[0].sync.primary: '-oProxyCommand=x' does not match"),
        ('from = "/a"\nafter = "rndc reload"', "$.service[0].sync.after: 'rndc reload' is not of type 'array'"),
        ('from = "/a"\nafter = ["rndc"]', "$.service[0].sync.after[0]: 'rndc' does not match"),
        ('from = "/a"\nprimary = "local"\nstandby = "local"', "$.service[0].sync: primary and standby are the same"),
        ('from = "/a"\nmax_shrink = 2', "$.service[0].sync.max_shrink: 2 is greater than the maximum of 1 (share of"),
        ('from = "/a"\nkeep = 1', "$.service[0].sync.keep: 1 is less than the minimum of 2 (copies kept"),
        ('method = "postgresql"\nuser = "u"', "$.service[0].sync: 'password_file' is a required property"),
        ('method = "mariadb"\npassword_file = "/p"', "$.service[0].sync: 'user' is a required property"),
        ('from = "/a"\nmethod = "ftp"', "$.service[0].sync.method: 'ftp' is not one of"),
        ('from = "/a"\nrsync_path = "sh -c \'x\'"', "$.service[0].sync.rsync_path:"),
    ],
)
def test_a_bad_table_is_refused_with_one_line(tmp_path: Path, table: str, message: str) -> None:
    """The line names the file, the key and what is wrong."""
    path = with_sync(tmp_path, table)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
