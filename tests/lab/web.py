"""A core's web interface on a private apache2, and a headless Chromium to look at it: here Nagios's own.

The CGIs need no network, only the core's files, so the web server may run in the controller's namespace (tests) or on
the machine's loopback (``make demo KEEP=1``, where a person wants to open it). Login ``nagiosadmin`` / ``demo``.
Icinga Web 2: ``tests.lab.icingaweb``.
"""

from __future__ import annotations

import base64
import hashlib
import http.cookiejar
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.daemon import Program
from tests.lab.nagios import Nagios
from tests.lab.netns import poll

APACHE, MODULES = "/usr/sbin/apache2", Path("/usr/lib/apache2/modules")
CHROMIUM = "/usr/bin/chromium"
ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "nagiosadmin", "demo"

CONFIG = """\
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {directory}/apache.pid
ErrorLog {directory}/error.log
DefaultRuntimeDir {directory}
Mutex file:{directory}
User {user}
Group {user}
StartServers 1
{modules}
TypesConfig /etc/mime.types
<Directory />
    Options FollowSymLinks
    AuthType Basic
    AuthName "Monitoring"
    AuthBasicProvider file
    AuthUserFile {directory}/htpasswd
    Require valid-user
    DirectoryIndex index.php index.html
</Directory>
{pages}"""
PHP = '<FilesMatch "\\.php$">\n    SetHandler application/x-httpd-php\n</FilesMatch>\n'
WANTED = ("mpm_prefork", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic", "alias", "cgi", "dir")
WANTED += ("env", "mime", "rewrite")

CGIS = """\
Alias /nagios4/stylesheets /etc/nagios4/stylesheets
ScriptAlias /nagios4/cgi-bin /usr/lib/cgi-bin/nagios4
Alias /nagios4 /usr/share/nagios4/htdocs
Alias /check_failover {reports}
RedirectMatch ^/$ /nagios4/
SetEnv NAGIOS_CGI_CONFIG {directory}/cgi.cfg
"""
CGI_CONFIG = """\
main_config_file={nagios}
physical_html_path=/usr/share/nagios4/htdocs
url_html_path=/nagios4
use_pending_states=1
use_authentication=1
authorized_for_system_information=nagiosadmin
authorized_for_configuration_information=nagiosadmin
authorized_for_system_commands=nagiosadmin
authorized_for_all_services=nagiosadmin
authorized_for_all_hosts=nagiosadmin
authorized_for_all_service_commands=nagiosadmin
authorized_for_all_host_commands=nagiosadmin
refresh_rate=5
result_limit=100
escape_html_tags=1
lock_author_names=1
enable_page_tour=0
"""


class Web(Program):
    """A web server that runs as the core's user and shows ``pages`` (lines of apache's config) below ``path``."""

    out = "apache2.out"
    path = "/"
    browser: tuple[str, ...] = ()  # further options for Chromium

    def __init__(
        self, directory: Path, user: str, pages: str, port: int = 8080, argv_prefix: Sequence[str] = ()
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.port, self._prefix = directory, port, tuple(argv_prefix)
        shutil.chown(directory, user, user)
        hashed = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()  # htpasswd -s
        (directory / "htpasswd").write_text(f"{USER}:{{SHA}}{hashed}\n")
        modules = [f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in WANTED]
        php = sorted(MODULES.glob("libphp*.so"))
        if php:
            modules.append(f"LoadModule php_module {php[-1]}\n{PHP}")
        values = {"directory": directory, "port": port, "user": user, "modules": "\n".join(modules), "pages": pages}
        (directory / "apache.conf").write_text(CONFIG.format(**values))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.path}"

    def argv(self) -> list[str]:
        return [*self._prefix, APACHE, "-f", str(self.directory / "apache.conf"), "-D", "FOREGROUND"]

    def serves(self) -> bool:
        return (self.directory / "apache.pid").exists()

    def said(self) -> str:
        return super().said() + _read(self.directory / "error.log")

    def fetch(self, path: str) -> str:
        """The page at ``path`` ("cgi-bin/status.cgi?host=all") as the logged-in administrator."""
        return self._curl(self.url + path)

    def wait(self, path: str, *texts: str, deadline: float = 30.0) -> str:
        """The page once it says all this."""
        seen = [""]

        def says() -> bool:
            seen.append(self.fetch(path))
            return all(text in seen[-1] for text in texts)

        poll(says, deadline, f"{texts} in the web interface", every=0.1)
        return seen[-1]

    def submit(self, path: str, fields: Mapping[str, str]) -> str:
        """Fill in and send a form as a browser does: get it, keep its cookie and hidden fields, post it."""
        jar = str(self.directory / "cookies")
        form = self._curl(self.url + path, "-c", jar)
        hidden = re.findall(r"<input type=.hidden. name=['\"](\w+)['\"] value=['\"]([^'\"]*)", form, re.IGNORECASE)
        body = urllib.parse.urlencode({**dict(hidden), **fields})
        return self._curl(self.url + path, "-b", jar, "--data", body)

    def _curl(self, url: str, *options: str) -> str:
        """HTTP from inside the namespace, by this interpreter's own urllib (no curl on a minimal machine)."""
        argv = [*self._prefix, sys.executable, "-m", "tests.lab.web", url, *options]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
        assert done.returncode == 0, f"{url}: {done.stderr[-500:]}"
        return done.stdout

    def screenshot(self, path: str, picture: Path, width: int = 1280, height: int = 640) -> str:
        """Open the page in headless Chromium, write ``picture`` (PNG), return the DOM's text as Chromium has it."""
        picture.parent.mkdir(parents=True, exist_ok=True)
        url = self.url.replace("http://", f"http://{USER}:{PASSWORD}@") + path
        with tempfile.TemporaryDirectory(prefix="cfo-chromium-") as profile:
            argv = [*self._prefix, CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
            argv += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
            argv += ["--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]
            argv += [f"--window-size={width},{height}", *self.browser, "--dump-dom", f"--screenshot={picture}", url]
            shot = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            assert picture.exists(), f"chromium: {shot.stderr[-1500:]}"
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", shot.stdout)).replace("&nbsp;", " ")


class Cgis(Web):
    """The web interface of one private Nagios; as its user cmd.cgi may write to the FIFO."""

    path = "/nagios4/"

    def __init__(self, directory: Path, nagios: Nagios, port: int = 8080, argv_prefix: Sequence[str] = ()) -> None:
        pages = CGIS.format(directory=directory, reports=nagios.directory.parent / "reports")
        super().__init__(directory, nagios.user, pages, port, argv_prefix)
        (directory / "cgi.cfg").write_text(CGI_CONFIG.format(nagios=nagios.config))

    def command(self, fields: Mapping[str, str]) -> str:
        """cmd.cgi's form, filled in and sent."""
        query = urllib.parse.urlencode({k: fields[k] for k in ("cmd_typ", "host", "service") if k in fields})
        return self.submit(f"cgi-bin/cmd.cgi?{query}", fields)


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace")[-2000:] if path.exists() else ""


def _request(url: str, jar_path: str | None, keep: bool, body: str | None) -> str:
    jar = http.cookiejar.LWPCookieJar(jar_path)
    if jar_path and not keep:
        jar.load(ignore_discard=True)
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar), urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data=body.encode() if body is not None else None)
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())
    with opener.open(request, timeout=20) as reply:
        text: str = reply.read().decode("utf-8", "replace")
    if jar_path and keep:
        jar.save(ignore_discard=True)
    return text


def _main(argv: list[str]) -> None:
    url, options = argv[0], dict(zip(argv[1::2], argv[2::2], strict=True))
    print(_request(url, options.get("-c") or options.get("-b"), "-c" in options, options.get("--data")))


if __name__ == "__main__":
    _main(sys.argv[1:])
