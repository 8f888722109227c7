"""The import rules of the house, read from the source: who may know whom, and who must stay pure."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "check_failover"
WINGS = {"sniffer", "redirector", "handlers", "sync", "pair", "admin"}
SERVING = {"checks", "transports", "sms"}
# Stage 1, and what judges or decides beside it: standard library only, no I/O, time is an argument.
PURE = [
    "model.py",
    "decide.py",
    "damping.py",
    "sniffer/investigation.py",
    "sniffer/health.py",
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "sniffer" / "stage1").rglob("*.py")),
]
# What does I/O, waits, or asks for the time: time is an argument there.
IMPURE = frozenset(
    {"asyncio", "ctypes", "datetime", "fcntl", "http", "io", "logging", "mmap", "multiprocessing", "os", "pathlib"}
    | {"pickle", "queue", "random", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl"}
    | {"subprocess", "sys", "tempfile", "threading", "time", "urllib"}
)
HOT = (
    "sniffer",
    "redirector",
    "handlers",
    "control.py",
    "listening.py",
    "peer.py",
    "rawip.py",
    "decide.py",
    "model.py",
    "notify.py",
)
FORBIDDEN_NAMES = {"utils", "util", "manager", "managers", "factory", "factories"}

FILES = sorted(PACKAGE.rglob("*.py"))


def module_path(name: str) -> str:
    """``sniffer/stage1/packet`` of ``sniffer/stage1/packet.py``; a folder's ``__init__`` is the folder."""
    return name.removesuffix(".py").removesuffix("/__init__")


MODULES = {module_path(str(path.relative_to(PACKAGE))) for path in FILES} | {"sniffer", "sniffer/stage1"}
PURE_MODULES = {module_path(name) for name in PURE} | {"sniffer"}


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, wherever in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path: Path) -> str:
    """The wing a file stands in, or "" for the ground."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def wings_known(path: Path) -> set[str]:
    """The wings that a file imports."""
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("check_failover.")}
    return rooms & (WINGS | SERVING)


def name_of(path: object) -> str:
    return str(path.relative_to(PACKAGE)) if isinstance(path, Path) else str(path)


def test_every_room_is_known_to_these_rules() -> None:
    """A new folder has to be entered here as a wing, or the rules below would not see it."""
    assert {room(path) for path in FILES} - {""} <= WINGS | SERVING


@pytest.mark.parametrize("path", [path for path in FILES if room(path) == ""], ids=name_of)
def test_nothing_on_the_ground_looks_up(path: Path) -> None:
    """The ground imports no wing."""
    assert wings_known(path) == set()


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in WINGS], ids=name_of)
def test_a_wing_knows_the_ground_and_the_serving_wings(path: Path) -> None:
    """Wings meet through the control sockets, never by import."""
    assert wings_known(path) <= SERVING | {room(path)}


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in SERVING], ids=name_of)
def test_a_serving_wing_knows_only_itself(path: Path) -> None:
    """Checks, transports and sms serve the others and know none of them, nor one another."""
    assert wings_known(path) <= {room(path)}


@pytest.mark.parametrize("name", PURE)
def test_what_decides_is_pure(name: str) -> None:
    """Standard library only, no I/O, no clock: what these say can be said again in a test."""
    for module in imports(PACKAGE / name):
        top = module.split(".")[0]
        if top == "check_failover":
            known = "/".join(module.split(".")[1:])
            place = known if known in MODULES else known.rpartition("/")[0]  # a name in a module
            assert place in {"", *PURE_MODULES}, f"{name} imports {module}"
        else:
            assert top in sys.stdlib_module_names, f"{name} imports {module}"
            assert top not in IMPURE, f"{name} imports {module}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "sniffer" / "capture").glob("*.py")), ids=name_of)
def test_the_capture_knows_no_monitor(path: Path) -> None:
    """It knows how packets look, and nothing else of the sniffer."""
    known = {name for name in imports(path) if name.startswith("check_failover.sniffer.")}
    others = {name for name in known if not name.startswith("check_failover.sniffer.capture")}
    assert all(f"{name}.".startswith("check_failover.sniffer.stage1.packet.") for name in others), others


@pytest.mark.parametrize("name", PURE)
def test_what_decides_opens_nothing(name: str) -> None:
    """No file, no console, no code made at run time, which need no import."""
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] in HOT and "bsd" not in path.name and path.stem != "replay"
    ],
    ids=name_of,
)
def test_scapy_is_nowhere_in_the_hot_path_on_linux(path: Path) -> None:
    """At 25 ms a packet and 41 MiB, scapy stays out of everything between a frame and a flip on Linux."""
    assert not [module for module in imports(path) if module.split(".")[0] == "scapy"]


def test_scapy_stands_in_one_place_at_most() -> None:
    """The sniffer's capture is the only one who may import it."""
    users = {room(path) for path in FILES if any(name.split(".")[0] == "scapy" for name in imports(path))}
    assert users <= {"sniffer"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_named_for_nothing(path: Path) -> None:
    """A file is named for what is in it: no utils, managers, factories."""
    assert path.stem not in FORBIDDEN_NAMES


@pytest.mark.parametrize("path", sorted((ROOT / "handlers").iterdir()), ids=lambda path: path.name)
def test_thin_scripts_hold_no_logic(path: Path) -> None:
    """The scripts that Nagios calls import the package and call one function."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if "python" not in lines[0]:
        pytest.fail(f"{path.name} is no Python script")
    tree = ast.parse("\n".join(lines))
    kinds = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.Try)
    assert not [node for node in ast.walk(tree) if isinstance(node, kinds)]
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 20


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "programs.py"], ids=name_of)
def test_programs_are_started_in_one_place(path: Path) -> None:
    """With a limit of time and of output, in a process group of their own: ``programs``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            what = ast.unparse(node.func)
            assert what not in {f"subprocess.{name}" for name in ("Popen", "run", "call", "check_output")}, path
            assert what not in {"os.system", "os.popen"}, path
