"""The environment of the TPU compiler: made once, in a cache folder, never the project's own.

`tensorflow-tpu` brings TensorFlow's TPU bridge, `jax[tpu]` the compiler and the calls that reach it
without a TPU. Newer libtpu than 0.0.30 abort with this TensorFlow.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys
import venv

PINS = (
    "tensorflow-tpu==2.20.0",
    "jax==0.8.1",
    "jaxlib==0.8.1",
    "libtpu==0.0.30",
    "absl-py==2.5.1",
    "ml_collections==1.1.0",
    "numpy==2.2.6",
    "safetensors==0.8.0",
    "scikit-learn==1.7.2",
    "scipy==1.15.3",
    "tqdm==4.70.1",
)
# They require the stock build of TensorFlow, which would overlay the one for TPU.
PINS_ALONE = ("tensorflow-text==2.20.1", "tf_keras==2.20.1")
PYTHONS = ((3, 10), (3, 13))  # tensorflow-tpu 2.20.0 has wheels from the first to before the second

# To be set before anything is imported: without the first, libtpu asks the cloud's metadata server
# and waits for minutes. The compiler's own log goes to nobody.
VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
}


def default_cache() -> str:
    """Where environments are kept: $XDG_CACHE_HOME/bert_tf, or ~/.cache/bert_tf."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "bert_tf")


def folder(cache: str) -> pathlib.Path:
    """The environment of these pins and this Python; another set of pins has another folder."""
    content = "\n".join((*PINS, *PINS_ALONE, sys.version.split()[0]))
    return pathlib.Path(cache) / f"tpu-compiler-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def is_made(cache: str) -> bool:
    """Whether the environment is complete."""
    return (folder(cache) / "made").exists()


def make(cache: str) -> pathlib.Path:
    """Makes the environment if it is not there; returns its Python.

    Raises:
        ValueError: it cannot be made here.
    """
    place = folder(cache)
    python = place / "bin" / "python"
    if is_made(cache):
        return python
    if sys.platform != "linux" or not PYTHONS[0] <= sys.version_info[:2] < PYTHONS[1]:
        raise ValueError(
            "the TPU compiler comes for Linux and Python 3.10 to 3.12 alone, and this is "
            f"{sys.platform} with Python {sys.version.split()[0]}; run the preflight there."
        )
    try:
        venv.create(place, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
            f"{place} cannot be made ({error}); name another place with --cache, with 4 GB of "
            "space, and install Python's module venv."
        ) from None
    for pins in (PINS, ("--no-deps", *PINS_ALONE)):
        install(python, pins)
    (place / "made").touch()
    return python


def install(python: pathlib.Path, pins: tuple[str, ...]) -> None:
    """Installs packages; raises ValueError with the last line of pip's message."""
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-input"]
    done = subprocess.run([*command, *pins], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.splitlines() or ["no message"])[-1]
        raise ValueError(
            f"pip could not install the TPU compiler ({reason}); it needs a package index with "
            f"{', '.join(pins)} and 4 GB of space. Run this again to go on."
        )
