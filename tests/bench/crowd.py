"""Server and clients for ``bench_scale``: many ports of one address, many connections, as little Python as possible.

    python -m tests.bench.crowd serve ADDRESS PORT                       echoes four bytes
    python -m tests.bench.crowd load ADDRESS PORT SERVICES new|kept SECONDS     prints requests per second
    python -m tests.bench.crowd stay ADDRESS PORT NUMBER TRIED

``stay`` opens NUMBER connections, which ask and wait, prints "waiting", and tries TRIED more after SIGUSR1; then it
prints ``{"freed", "at", "served", "waits"}``: the connections that were reset, when the last was (Unix time), how many
of the tried ones were served and how long each waited, 20 seconds later at the latest.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import select
import signal
import socket
import struct
import sys
import time

ASK, AT_RESET = b"ask\n", struct.pack("ii", 1, 0)
PROCESSES = 2
PATIENCE = 20.0  # seconds


def serve(address: str, port: int) -> None:
    listener = socket.create_server((address, port), backlog=4096)
    listener.setblocking(False)
    events, open_ = select.epoll(), {listener.fileno(): listener}
    events.register(listener, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for number, _ in events.poll():
            if number == listener.fileno():
                for _ in range(64):
                    try:
                        made, _ = listener.accept()
                    except BlockingIOError:
                        break
                    open_[made.fileno()] = made
                    events.register(made, select.EPOLLIN)
                continue
            try:
                asked = open_[number].recv(64)
                if asked == ASK:
                    open_[number].send(asked)
                if asked:
                    continue
            except OSError:
                pass
            events.unregister(number)
            open_.pop(number).close()


def _connected(address: str, port: int) -> socket.socket:
    made = socket.create_connection((address, port), timeout=10.0)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_RESET)  # no port waits in TIME_WAIT
    return made


def _client(address: str, port: int, services: int, kept: bool, seconds: float, first: int) -> int:
    held = [_connected(address, port + n) for n in range(min(services, 100))] if kept else []
    done, number, end = 0, first, time.monotonic() + seconds
    while time.monotonic() < end:
        number += 1
        sock = held[number % len(held)] if kept else _connected(address, port + number % services)
        sock.sendall(ASK)
        assert sock.recv(64) == ASK
        if not kept:
            sock.close()
        done += 1
    return done


def load(address: str, port: int, services: int, how: str, seconds: float) -> None:
    jobs = [(address, port, services, how == "kept", seconds, 37 * n) for n in range(PROCESSES)]
    with multiprocessing.Pool(PROCESSES) as pool:
        print(json.dumps(sum(pool.starmap(_client, jobs, chunksize=1)) / seconds))


def stay(address: str, port: int, number: int, tried: int) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, number + tried + 100), most))
    events, held = select.epoll(), {}
    for _ in range(number):
        sock = _connected(address, port)
        sock.setblocking(False)
        sock.sendall(b"wait\n")
        held[sock.fileno()] = sock
        events.register(sock, select.EPOLLIN | select.EPOLLRDHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    print("waiting", flush=True)
    signal.sigwait({signal.SIGUSR1})
    began, trying = time.time(), {}
    for _ in range(tried):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((address, port))
        trying[sock.fileno()] = sock
        events.register(sock, select.EPOLLOUT)
    print("tried", flush=True)
    freed, last, waits = 0, 0.0, []
    while (len(waits) < tried or freed < number) and time.time() < began + PATIENCE:
        for one, _ in events.poll(1.0):
            events.unregister(one)
            if one in trying:
                if trying[one].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    waits.append(time.time() - began)
            else:
                freed, last = freed + 1, time.time()
    print(json.dumps({"freed": freed, "at": last, "served": len(waits), "waits": sorted(waits)}), flush=True)


def main(what: str, address: str, port: str, *more: str) -> None:
    if what == "serve":
        serve(address, int(port))
    elif what == "load":
        load(address, int(port), int(more[0]), more[1], float(more[2]))
    else:
        stay(address, int(port), int(more[0]), int(more[1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
