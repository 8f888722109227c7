"""A strict stand-in for NRDP's server: takes what NRDP 2 documents for ``submitcheck`` in JSON, and nothing else.

There is no Debian package of NRDP. As its ``nagioscorepassivecheck`` does, it checks the token, turns newlines in the
output into ``\\n``, and hands the result to Nagios: by the command file, where NRDP writes into ``check_result_path``
and Nagios looks there every second at best. What NRDP would pass over in silence is a fault here. HTTPS only.

    python -m tests.lab.nrdp DIRECTORY ADDRESS PORT COMMAND_FILE      in a namespace of its own
"""

from __future__ import annotations

import http.server
import json
import os
import ssl
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from tests.lab.apache import certificate
from tests.lab.daemon import Daemon

TOKEN = "pa55-the-token"
FIELDS = {"checkresult", "hostname", "servicename", "state", "output"}


class NrdpServer(Daemon):
    """Serves in a thread. ``commands``: those sent to the core; ``answers``: each replaces one of our own answers."""

    def __init__(self, directory: Path, address: str, port: int = 0, command_file: Path | None = None) -> None:
        self.posts, self.commands, self._command_file = 0, list[str](), command_file
        self.answers: list[tuple[int, bytes]] = []
        self.ca_file, self.token_file = directory / "ca.pem", directory / "nrdp.token"
        self.token_file.write_text(f"{TOKEN}\n")
        certificate(directory, "nrdp", f"IP:{address}")
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # so that a session is kept, as with a real web server

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((address, port), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "nrdp.pem", directory / "nrdp.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://{address}:{self._server.server_address[1]}/nrdp/"

    def start(self) -> None:
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        self._server.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """One POST."""
        form = urllib.parse.parse_qs(request.rfile.read(int(request.headers["Content-Length"])).decode())
        self.posts += 1
        status, body = self.answers.pop(0) if self.answers else (200, json.dumps(self._submit(form)).encode())
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _submit(self, form: dict[str, list[str]]) -> dict[str, Any]:
        if form.get("token") != [TOKEN]:
            return fault("BAD TOKEN")
        if form.get("cmd") != ["submitcheck"] or set(form) != {"token", "cmd", "json"}:
            return fault("NO REQUEST HANDLER")
        try:
            rows = json.loads(form["json"][0])["checkresults"]
            commands = [command(row) for row in rows]
        except (ValueError, KeyError, TypeError):
            return fault("BAD JSON")
        for line in commands:
            self._write(line)
        done = {"output": f"{len(commands)} checks processed"}
        return {"result": {"status": 0, "message": "OK", "meta": done}}

    def _write(self, line: str) -> None:
        self.commands.append(line)
        if self._command_file is not None:
            handle = os.open(self._command_file, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(handle, f"[{int(time.time())}] {line}\n".encode())
            finally:
                os.close(handle)


def fault(message: str) -> dict[str, Any]:
    return {"result": {"status": -1, "message": message}}


def command(row: dict[str, Any]) -> str:
    """A row as Nagios's command. Raises ValueError for what NRDP does not document."""
    if set(row) != FIELDS or row["checkresult"].get("type") != "service" or row["state"] not in ("0", "1", "2", "3"):
        raise ValueError("not a service's result")
    host, service, text = str(row["hostname"]), str(row["servicename"]), str(row["output"])
    if any(c in host + service for c in ";\n\t") or any(not c.isprintable() and c != "\n" for c in text):
        raise ValueError("control characters")
    text = text.replace("\n", "\\n")
    return f"PROCESS_SERVICE_CHECK_RESULT;{host};{service};{row['state']};{text}"


if __name__ == "__main__":
    NrdpServer(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])).serve()
