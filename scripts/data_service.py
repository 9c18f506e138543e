"""Makes batches for a run on several machines, so that each of these need not make all of them.

    python scripts/data_service.py --port=5050
    python scripts/train.py ... --accelerator=multi_worker --config.data.service=grpc://HOST:5050

It runs until it is stopped, for as many runs as ask it. The machine must have the TensorFlow of the
runs, and see their files where these are streamed (pre-training records).
"""

from __future__ import annotations

import socket

import tensorflow as tf
import tensorflow_text  # noqa: F401 - its operations may be in a pipeline
from absl import flags, logging

from bert_tf import command_line

PORT = flags.DEFINE_integer("port", 5050, "Port to listen on.", lower_bound=1, upper_bound=65535)
HOST = flags.DEFINE_string(
    "host", None, "Name of this machine, as the others know it; default: its own name for itself."
)


def main(unused_argv: list[str]) -> None:
    """Serves until it is stopped; raises ValueError where the port is taken."""
    host = HOST.value or socket.gethostname()
    service = tf.data.experimental.service
    try:
        dispatcher = service.DispatchServer(service.DispatcherConfig(port=PORT.value))
        worker = service.WorkerServer(
            service.WorkerConfig(
                dispatcher_address=f"localhost:{PORT.value}", worker_address=f"{host}:%port%"
            )
        )
    except tf.errors.OpError as error:
        raise ValueError(
            f"--port={PORT.value} cannot be listened on ({error.message.splitlines()[0]}); another "
            "process has it: stop that, or choose another port."
        ) from None
    logging.info("Ready: --config.data.service=grpc://%s:%d", host, PORT.value)
    worker.join()
    dispatcher.join()


if __name__ == "__main__":
    command_line.run_script(main)
