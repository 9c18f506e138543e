"""The workers of a cluster wait for each other before TensorFlow connects them.

TensorFlow's own wait has no end, and nobody can interrupt it: it holds Python's lock, and its
server swallows SIGTERM. So workers meet first, at the address at which TensorFlow will listen on
the chief: each says who it is, and the chief lets all go once all are there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Sequence

from absl import logging

LIMIT_VARIABLE = "BERT_TF_WORKER_WAIT"
LIMIT = 600.0  # seconds; queues start the machines of one job minutes apart
PAUSE = 0.2  # seconds between two looks
ANSWER = 2.0  # seconds for what a worker says at once
GREETING = "bert_tf worker"
GO = b"go"


def meet(number: int, addresses: Sequence[str]) -> None:
    """Returns once all workers have called this; `number` is this one's, 0 the chief's.

    Raises:
        ValueError: not all came within the limit, or the chief's port is taken.
    """
    until = time.monotonic() + wait_limit()
    if number == 0:
        gather_workers(addresses, until)
    else:
        go_to_chief(number, addresses, until)


def wait_limit() -> float:
    """Seconds to wait, from the environment or the default; raises ValueError for no number."""
    value = os.environ.get(LIMIT_VARIABLE) or str(LIMIT)
    with contextlib.suppress(ValueError):
        if float(value) > 0:
            return float(value)
    raise ValueError(
        f"the environment variable {LIMIT_VARIABLE}={value!r} must be seconds above 0."
    )


def gather_workers(addresses: Sequence[str], until: float) -> None:
    """The chief's part: waits for all others, then lets them go."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as opened, listening(addresses[0]) as door:
        while True:
            for number in [number for number, other in there.items() if has_left(other)]:
                del there[number]
            missing = [n for n in range(1, len(addresses)) if n not in there]
            if not missing:
                break
            if time.monotonic() > until:
                raise absent([addresses[number] for number in missing])
            with contextlib.suppress(OSError):  # nobody came, or who came is gone
                other = opened.enter_context(door.accept()[0])
                other.settimeout(ANSWER)
                said = other.recv(64).decode("ascii", "replace")
                who = [n for n in missing if said == f"{GREETING} {n}"]
                if who:
                    logging.info("Worker %d (%s) is there.", who[0], addresses[who[0]])
                    there[who[0]] = other
                else:
                    other.close()  # a health check, for example
        for other in there.values():
            with contextlib.suppress(OSError):
                other.settimeout(ANSWER)
                other.sendall(GO)
                other.recv(1)  # nothing: it hangs up first, which leaves the port free at once


def go_to_chief(number: int, addresses: Sequence[str], until: float) -> None:
    """The part of all others: says who this is, and waits until the chief lets it go."""
    host, _, port = addresses[0].rpartition(":")
    was_there = False
    while (left := until - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host.strip("[]"), int(port)), timeout=left) as chief,
        ):
            was_there = True
            chief.sendall(f"{GREETING} {number}".encode())
            chief.settimeout(max(until - time.monotonic(), PAUSE))
            if chief.recv(len(GO)) == GO:
                return
        time.sleep(PAUSE)  # the chief has not started yet, or starts again
    if was_there:
        raise ValueError(
            f"not all workers came within {wait_limit():g} s ({LIMIT_VARIABLE}): the log of the "
            f"chief ({addresses[0]}) says who did."
        )
    raise absent([addresses[0]])


@contextlib.contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A socket at the port of this address, that does not wait longer than a moment."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        door = socket.create_server(
            ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
        )
    except OSError as error:
        raise ValueError(
            f"TF_CONFIG: the port of {address} cannot be used here ({error.strerror}); is another "
            "process of this job, or of an earlier one, still running?"
        ) from None
    with door:
        door.settimeout(PAUSE)
        yield door


def has_left(other: socket.socket) -> bool:
    """Whether a worker that came has gone again."""
    try:
        other.setblocking(False)
        return other.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def absent(addresses: Sequence[str]) -> ValueError:
    """The error that names who did not come."""
    return ValueError(
        f"no answer from {', '.join(addresses)} within {wait_limit():g} s ({LIMIT_VARIABLE}); the "
        "same command must start on every machine of TF_CONFIG, and its addresses must be "
        "reachable from all of them."
    )
