"""What the tests of stage 1's detectors share: their names, services, and clients in trouble."""

from __future__ import annotations

import heapq
import itertools
import random

from check_failover.model import Detector
from check_failover.sniffer.stage1.packet import ACK, TCP, Packet
from tests.unit import packets as made
from tests.unit.packets import PRIMARY, Stage, Talk, learn, packed

REFUSED, SYN_UNANSWERED, UNANSWERED = Detector.REFUSED, Detector.UNANSWERED_SYN, Detector.UNANSWERED_REQUEST
REPEATED, ERRORS, SILENCE = Detector.RETRANSMISSION, Detector.ERROR_SHARE, Detector.SILENCE


def dns_stage() -> Stage:
    return Stage(made.service("dns", port=53, protocol="udp"))


def known_round_trip(stage: Stage, seconds: float, times: int = 40) -> None:
    """Teach the watch how long a handshake takes."""
    for number in range(times):
        talk = Talk(stage, 30000 + number).connect(seconds)
        stage.wait(0.01)
        talk.close()
        stage.wait(0.01)


def unreachable(stage: Stage, port: int, to: str = PRIMARY, client: str = "198.51.100.7", proto: int = TCP) -> None:
    """ICMP about a packet of that client."""
    service_port = stage.service.address.port
    stage.feed(Packet(stage.now, proto, packed(client), port, packed(to), service_port, 0, 0, 0, b"", 0, True))


def lossy(seed: int, before: float, behind: float) -> Stage:
    """Thirty clients for 12 s on lossy ways before the controller and behind it; TCP's repetitions after 200 ms."""
    chance = random.Random(seed)
    stage = Stage()
    learn(stage)
    request, reply = made.search(1), made.entry(1) + made.result(1)
    half = len(made.entry(1))
    order = itertools.count()
    events: list[tuple[float, int, str, Talk, float]] = []

    def later(seconds: float, what: str, talk: Talk, patience: float = 0.2) -> None:
        heapq.heappush(events, (stage.now + seconds, next(order), what, talk, patience))

    for number in range(30):
        later(number * 0.003, "ask", Talk(stage, 42000 + number, f"198.51.100.{number}").connect())
    end = stage.now + 12.0
    while events[0][0] < end:
        at, _, what, talk, patience = heapq.heappop(events)
        stage.wait(max(0.0, at - stage.now))
        if what in ("ask", "ask again"):
            seen = chance.random() >= before
            if what == "ask":
                talk.ask(request, seen=seen)
            elif seen:
                stage.feed(talk.up(ACK, talk.seq - len(request), request))
            if seen and chance.random() >= behind:
                later(0.002, "answer", talk)
            else:
                later(patience, "ask again", talk, 2 * patience)
        elif what == "answer":
            first, second = chance.random() >= behind, chance.random() >= behind
            talk.answer(reply[:half], seen=first)
            talk.answer(reply[half:], seen=second)
            later(*((0.03, "ask") if first and second else (0.2, "answer again")), talk)
        elif chance.random() >= behind:
            talk.answer_again(reply)
            later(0.03, "ask", talk)
        else:
            later(0.4, "answer again", talk)
    return stage
