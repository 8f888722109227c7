"""The project and what people use in its place, each as a site in network namespaces with two real slapd.

    with RIVALS["nginx"].open(directory) as ground:
        ground.house, ground.slapd     # for tests.lab.load and tests.lab.faults

Every rival serves the same service address with the same primary and standby, and has the best health check it offers:

============== ====== ===============================================================================================
name           way    how
============== ====== ===============================================================================================
check_failover NAT    failover-sniffer, Nagios 4 and failover-redirector as ``tests.lab.site`` builds them
haproxy        proxy  documented defaults: check every 2 s, 3 failures; ldap-check (a bind); timeouts of its manual
haproxy-tuned  proxy  as fast as its manual allows: 250 ms, 2 failures, watches real traffic, ends dead sessions
haproxy-search proxy  the same with a bind and a search written byte by byte (tcp-check), which sees failing searches
nginx          proxy  stream module: no health checks in the free edition, but the next server after one failure
keepalived     NAT    ldapsearch once a second (vrrp_script); its notify scripts change an nft map, and conntrack -D
============== ====== ===============================================================================================

Sources: HAProxy 2.6 configuration manual; nginx ngx_stream_upstream_module; keepalived.conf(5).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.daemon import Housed
from tests.lab.load import bind_request, search_request
from tests.lab.netns import PRIMARY, SERVICE_ADDRESS, STANDBY, House
from tests.lab.site import SERVERS, Site
from tests.lab.slapd import BASE, Slapd

HAPROXY, NGINX, KEEPALIVED = "/usr/sbin/haproxy", "/usr/sbin/nginx", "/usr/sbin/keepalived"
NGINX_STREAM = "/usr/lib/nginx/modules/ngx_stream_module.so"
NFT = "/usr/sbin/nft"


@dataclass(frozen=True)
class Ground:
    """A rival at work: traffic to the service address reaches the primary."""

    house: House
    slapd: dict[str, Slapd]


@dataclass(frozen=True)
class Rival:
    """``start`` puts it into the controller of a built house; what it starts there ends with the house."""

    name: str
    proxy: bool  # clients' connections end here, and new ones go to the server
    start: Callable[[House, Path], None] | None  # None: the project itself

    @contextlib.contextmanager
    def open(self, directory: Path) -> Iterator[Ground]:
        if self.start is None:
            with Site(directory, kannel=False) as site:
                site.wait_healthy("standby")
                yield Ground(site.house, site.slapd)
            return
        with contextlib.ExitStack() as stack:
            house = stack.enter_context(House())
            directory.mkdir(parents=True, exist_ok=True)
            slapd = {}
            for name, address in SERVERS.items():
                server = Slapd(directory / name, address, serves=name, argv_prefix=house.argv(name))
                slapd[name] = stack.enter_context(server)
            self.start(house, directory)
            yield Ground(house, slapd)


def _listens(house: House) -> bool:
    return f"{SERVICE_ADDRESS}:389" in house.run("controller", "/usr/bin/ss", "-Hltn")


# ------------------------------------------------------------ HAProxy

# The timeouts are those of the manual's own examples: it has no default for them and warns when they are missing.
HAPROXY_CONFIG = """\
global
    maxconn 2000
defaults
    mode tcp
    timeout connect {connect}
    timeout client 50s
    timeout server 50s
    {more}
frontend ldap
    bind {address}:389
    default_backend servers
backend servers
    {check}
    server primary {primary}:389 check
    server standby {standby}:389 check backup
"""

HAPROXY_TUNED = """\
timeout check 300ms
    option redispatch 1
    default-server inter 250ms fastinter 100ms fall 2 observe layer4 error-limit 2 on-error mark-down on-marked-down shutdown-sessions
"""  # noqa: E501

# 0x61 is the bind's answer, 0x65 the search's; 0A0100 in its beginning is the result success (RFC 4511, 4.1.9).
HAPROXY_SEARCH = f"""\
option tcp-check
    tcp-check connect
    tcp-check send-binary {bind_request(1).hex()}
    tcp-check expect rbinary 61..0A0100
    tcp-check send-binary {search_request(2, BASE, "description").hex()}
    tcp-check expect rbinary 65..0A0100
"""


def _haproxy(connect: str, more: str, check: str) -> Callable[[House, Path], None]:
    def start(house: House, directory: Path) -> None:
        config = directory / "haproxy.cfg"
        values = {"connect": connect, "more": more, "check": check}
        config.write_text(
            HAPROXY_CONFIG.format(address=SERVICE_ADDRESS, primary=PRIMARY, standby=STANDBY, **values), "utf-8"
        )
        argv, log = (HAPROXY, "-db", "-f", str(config)), directory / "haproxy.log"
        Housed(house, "controller", argv, log, lambda: _listens(house)).start()

    return start


# ------------------------------------------------------------ nginx

NGINX_CONFIG = f"""\
load_module {NGINX_STREAM};
daemon off;
user root;
worker_processes 1;
pid {{directory}}/nginx.pid;
error_log {{directory}}/nginx.log info;
events {{{{ worker_connections 4096; }}}}
stream {{{{
    upstream ldap {{{{
        server {PRIMARY}:389 max_fails=1;
        server {STANDBY}:389 backup;
    }}}}
    server {{{{
        listen {SERVICE_ADDRESS}:389;
        proxy_pass ldap;
        proxy_connect_timeout 200ms;
    }}}}
}}}}
"""


def _nginx(house: House, directory: Path) -> None:
    config = directory / "nginx.conf"
    config.write_text(NGINX_CONFIG.format(directory=directory), "utf-8")
    log = directory / "nginx.out"
    argv = (NGINX, "-p", str(directory), "-c", str(config), "-e", str(log))
    Housed(house, "controller", argv, log, lambda: _listens(house)).start()


# ------------------------------------------------------------ keepalived

# One machine alone is master of its router; a failed script is a FAULT, and both states have a notify script.
# rise 5: under loss some searches pass, and each change of the state would move everybody.
KEEPALIVED_CONFIG = """\
global_defs {{
    router_id controller
    script_user root
    enable_script_security
}}
vrrp_script ldap {{
    script "{directory}/probe"
    interval 1
    timeout 1
    fall 1
    rise 5
}}
vrrp_instance controller {{
    state MASTER
    interface sv0
    virtual_router_id 51
    priority 255
    advert_int 1
    virtual_ipaddress {{
        10.0.0.2/32
    }}
    track_script {{
        ldap
    }}
    notify_master "{directory}/steer {primary}"
    notify_fault "{directory}/steer {standby}"
}}
"""

KEEPALIVED_PROBE = f"""\
#!/bin/sh
LDAPNOINIT=1 exec /usr/bin/timeout 1 /usr/bin/ldapsearch -x -LLL -o nettimeout=1 -H ldap://{PRIMARY} -b {BASE} -s base description
"""  # noqa: E501

KEEPALIVED_STEER = f"""\
#!/bin/sh
{NFT} -f - <<END
flush map ip steer server
add element ip steer server {{{{ {SERVICE_ADDRESS} : $1 }}}}
END
/usr/sbin/conntrack -D -p tcp -d {SERVICE_ADDRESS} --dport 389
echo "$1" >>{{directory}}/steered
"""

KEEPALIVED_NAT = f"""
table ip steer {{
    map server {{ type ipv4_addr : ipv4_addr; elements = {{ {SERVICE_ADDRESS} : {PRIMARY} }}; }}
    chain prerouting {{
        type nat hook prerouting priority dstnat;
        ip daddr {SERVICE_ADDRESS} tcp dport 389 dnat to ip daddr map @server
    }}
}}
"""


def _keepalived(house: House, directory: Path) -> None:
    house.run("controller", NFT, "-f", "-", input=KEEPALIVED_NAT)
    for name, text in (("probe", KEEPALIVED_PROBE), ("steer", KEEPALIVED_STEER.format(directory=directory))):
        (directory / name).write_text(text, "utf-8")
        (directory / name).chmod(0o700)
    config = directory / "keepalived.conf"
    config.write_text(KEEPALIVED_CONFIG.format(directory=directory, primary=PRIMARY, standby=STANDBY), "utf-8")
    argv = [KEEPALIVED, "--dont-fork", "--log-console", "--log-detail", "--vrrp", "--use-file", str(config)]
    argv += ["--pid", str(directory / "keepalived.pid"), "--vrrp_pid", str(directory / "vrrp.pid")]
    Housed(house, "controller", argv, directory / "keepalived.log", (directory / "steered").exists).start()


RIVALS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        Rival("check_failover", proxy=False, start=None),
        Rival("haproxy", proxy=True, start=_haproxy("5s", "", "option ldap-check")),
        Rival("haproxy-tuned", proxy=True, start=_haproxy("500ms", HAPROXY_TUNED, "option ldap-check")),
        Rival("haproxy-search", proxy=True, start=_haproxy("500ms", HAPROXY_TUNED, HAPROXY_SEARCH)),
        Rival("nginx", proxy=True, start=_nginx),
        Rival("keepalived", proxy=False, start=_keepalived),
    )
}
