"""Workers meet before TensorFlow connects them: in threads, over the loopback network."""

from __future__ import annotations

import concurrent.futures
import socket
import time
from collections.abc import Sequence

import pytest

from bert_tf import rendezvous


def free_addresses(count: int) -> list[str]:
    doors = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return [f"localhost:{port}" for port in ports]


def come(addresses: list[str], numbers: Sequence[int]) -> list[str]:
    """What these workers end in, who come one after the other; "" for those that go on."""

    def ends(number: int) -> str:
        try:
            rendezvous.meet(number, addresses)
        except ValueError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
        waiting = []
        for number in numbers:
            waiting.append(pool.submit(ends, number))
            time.sleep(0.1)
        return [each.result() for each in waiting]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_all_go_on_once_all_are_there(order: list[int]) -> None:
    addresses = free_addresses(3)
    for _ in range(2):  # the port is free again at once, for TensorFlow and for the next start
        assert come(addresses, order) == [""] * 3


def test_a_worker_alone_goes_on() -> None:
    assert come(free_addresses(1), [0]) == [""]


def test_who_did_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rendezvous.LIMIT_VARIABLE, "0.9")
    addresses = free_addresses(3)
    chief, other = come(addresses, [0, 1])
    assert chief.startswith(f"no answer from {addresses[2]} within 0.9 s (BERT_TF_WORKER_WAIT);")
    assert f"the log of the chief ({addresses[0]}) says who did" in other
    (alone,) = come(addresses, [1])
    assert alone.startswith(f"no answer from {addresses[0]} within")


def test_a_worker_that_left_is_waited_for_again() -> None:
    addresses = free_addresses(2)
    host, port = addresses[0].split(":")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        chief = pool.submit(rendezvous.meet, 0, [*addresses, "localhost:1"])
        time.sleep(0.2)
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"bert_tf worker 7", b"bert_tf worker 1"):
            with socket.create_connection((host, int(port))) as visitor:
                visitor.sendall(said)
                time.sleep(0.3)
        assert come([*addresses, "localhost:1"], [2, 1]) == ["", ""]
        chief.result()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=rf"the port of {address} cannot be used here"):
            rendezvous.meet(0, [address, "localhost:1"])


@pytest.mark.parametrize("value", ["soon", "-1", "0"])
def test_a_limit_that_is_none(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(rendezvous.LIMIT_VARIABLE, value)
    with pytest.raises(ValueError, match=r"BERT_TF_WORKER_WAIT='.*' must be seconds above 0"):
        rendezvous.meet(0, free_addresses(2))
