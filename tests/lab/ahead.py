"""A connection by hand: it asks, sends a segment far ahead of the window, asks again, and prints each answer.

Arguments: address, port, source port, and perhaps a file: before the segment it waits until that exists. The client's
own stack must be quiet (``handshake.QUIET``).
"""

import sys
import time
from pathlib import Path

from tests.lab.handshake import ACK, PSH, RST, SYN, Client


def got(client: Client, wanted: int) -> tuple[int, int, int, bytes]:
    until = time.monotonic() + 3
    while (packet := client.receive(until)) is not None:
        if packet[0] & (wanted | RST):
            return packet
    raise SystemExit("nothing came")


def ask(client: Client, number: int, after: int) -> int:
    client.send(ACK | PSH, client.isn + 1 + 4 * number, after, b"who\n")
    flags, seq, _, data = got(client, PSH)
    print("reset" if flags & RST else data.decode().strip(), flush=True)
    return seq + len(data)


def main() -> None:
    address, port, source_port, *awaited = sys.argv[1:]
    client = Client(address, int(port), int(source_port))
    client.send(SYN, client.isn)
    _, seq, _, _ = got(client, SYN)
    client.send(ACK, client.isn + 1, seq + 1)
    after = ask(client, 0, seq + 1)
    while not all(Path(file).exists() for file in awaited):
        time.sleep(0.02)
    client.send(ACK | PSH, client.isn + 5_000_000, after, b"far ahead")
    packet = client.receive(time.monotonic() + 1)
    if packet is not None and packet[0] & RST:
        print("reset", flush=True)
    ask(client, 1, after)


if __name__ == "__main__":
    main()
