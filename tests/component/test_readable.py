"""The lab works from a folder that only root can read: it runs in a copy, and the copy is gone afterwards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.netns import end, poll
from tests.lab.readable import LEFT_OUT, PREFIX, ROOT, copied

pytestmark = pytest.mark.component

# As the user daemon with two capabilities; and Nagios, which runs our event handler as the user nagios.
AS_OTHERS = ("test_redirector.py::test_least_privilege", "test_doctor.py::test_the_core_ran_the_handler")
NOBODY = ("/usr/sbin/runuser", "-u", "nobody", "--")
VERSION = f"""
import os, subprocess
print(os.getcwd(), flush=True)
print(open(".venv/bin/failoverctl").readline(), end="", flush=True)
subprocess.run([{", ".join(map(repr, NOBODY))}, ".venv/bin/failoverctl", "--version"], check=True)
raise SystemExit(3)
"""
TIDY = """
import os, pathlib, signal, sys, time
def tidy(*_):
    pathlib.Path(sys.argv[2]).touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, tidy)
pathlib.Path(sys.argv[1]).write_text(os.getcwd() + "\\n")
time.sleep(60)
"""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a person with umask 077 has it below /root: nobody else may enter or read any of it."""
    folder = tmp_path_factory.mktemp("private") / "clone"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    shutil.copytree(sys.prefix, folder / ".venv", symlinks=True)
    subprocess.run(["/bin/chmod", "-R", "go=", str(folder.parent)], check=True)
    return folder


def readable(folder: Path, *argv: str) -> subprocess.Popen[str]:
    """Started there with umask 077 and nothing of this run's own environment, so that only the copy makes it work."""
    return subprocess.Popen(
        [folder / ".venv/bin/python", "-m", "tests.lab.readable", *argv],
        cwd=folder, umask=0o077, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def said(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        end(process)


def test_tests_that_run_programs_as_other_users(private: Path) -> None:
    """They pass in a folder that those users cannot read, and the copy is gone."""
    tests = [f"tests/component/{name}" for name in AS_OTHERS]
    process = readable(private, "-m", "pytest", "--strict-skips", "-p", "no:cacheprovider", *tests)
    text = said(process, 300.0)
    assert process.returncode == 0, text[-4000:]
    assert "2 passed" in text
    root = re.search(r"^rootdir: (\S+)$", text, re.MULTILINE)
    assert root, text
    assert Path(root[1]).name.startswith(PREFIX)
    assert not Path(root[1]).exists()


def test_every_user_may_run_the_copys_programs(private: Path) -> None:
    """A script of the copy runs as nobody, with the copy's interpreter; the folder's own script does not.

    The exit code is the command's, so that ``make`` sees how the tests went.
    """
    ctl = [str(private / ".venv/bin/failoverctl"), "--version"]
    assert subprocess.run([*NOBODY, *ctl], capture_output=True, check=False).returncode != 0
    process = readable(private, "-c", VERSION)
    copy, shebang, version = said(process, 60.0).splitlines()
    assert process.returncode == 3
    assert shebang.startswith(f"#!{copy}/.venv/bin/python")
    assert version == subprocess.run([sys.executable, *ctl], capture_output=True, text=True, check=True).stdout.strip()
    assert not Path(copy).exists()


@pytest.mark.parametrize("head", ["#!{}", "#!/bin/sh\n'''exec' {} \"$0\" \"$@\"", "#!/bin/sh\n'''exec' \"{}\" \"$0\""])
def test_scripts_lead_to_the_copys_interpreter(tmp_path: Path, head: str) -> None:
    """All the ways in which pip names it; nothing else in a script is touched, and no script of another kind."""
    (tmp_path / "made/bin").mkdir(parents=True)
    rest = "\nold = '/old place/.venv/bin/python3'\n"
    (tmp_path / "made/bin/ours").write_text(head.format("/old place/.venv/bin/python3.11") + rest)
    (tmp_path / "made/bin/other").write_text("#!/bin/sh\nexec /old/bin/python\n")
    (tmp_path / "tree").mkdir()
    with copied(tmp_path / "tree", tmp_path / "made") as copy:
        assert (copy / ".venv/bin/ours").read_text() == head.format(f"{copy}/.venv/bin/python3.11") + rest
        assert (copy / ".venv/bin/other").read_text() == "#!/bin/sh\nexec /old/bin/python\n"


def test_it_ends_in_order(private: Path, tmp_path: Path) -> None:
    """SIGTERM reaches the command, which may tidy up, and the copy goes."""
    there, tidied = tmp_path / "there", tmp_path / "tidied"
    process = readable(private, "-c", TIDY, str(there), str(tidied))
    try:
        poll(lambda: there.exists() and there.read_text().endswith("\n"), 30.0, "the command runs")
        copy = Path(there.read_text().strip())
        assert copy.is_dir()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20.0) == 143
    finally:
        end(process)
    assert tidied.exists()
    assert not copy.exists()
