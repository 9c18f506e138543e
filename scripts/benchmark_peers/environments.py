"""Makes an environment of its own for each library that bert_tf is measured beside.

    python scripts/benchmark_peers/environments.py            # all, or the names of some

Each is a virtual environment in ~/.cache/bert_tf/benchmark, named after the library and a checksum
of what is in it. One that is there already is left alone. `scripts/benchmark.py` makes those that
it needs by itself.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
# Files of requirements, in the order they are installed in. Those named *_alone are installed
# without what they ask for: an environment of official would else hold OpenCV, Kaggle and the like.
PEERS = {
    "torch": ("torch.txt",),
    "onnxruntime": ("torch.txt", "onnxruntime.txt"),  # it takes its models from torch
    "keras_hub": ("keras_hub.txt", "keras_hub_alone.txt"),
    "official": ("official.txt", "official_alone.txt"),
}


class NotInstalled(Exception):  # noqa: N818
    """A library cannot be installed here."""


def cache_folder() -> pathlib.Path:
    """$XDG_CACHE_HOME/bert_tf/benchmark, or ~/.cache/bert_tf/benchmark."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(root) / "bert_tf" / "benchmark"


def folder(peer: str) -> pathlib.Path:
    """Of the environment with these requirements and this Python."""
    content = sys.version.split()[0] + "".join((HERE / name).read_text() for name in PEERS[peer])
    return cache_folder() / f"{peer}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def is_made(peer: str) -> bool:
    """Whether the environment is there, whole."""
    return (folder(peer) / "bin" / "python").exists()


def make(peer: str) -> pathlib.Path:
    """The Python of a library's environment, which is made if it is not there.

    Raises:
        NotInstalled: with the last line of what pip said.
    """
    place = folder(peer)
    if is_made(peer):
        return place / "bin" / "python"
    # Whole or not at all: a virtual environment's own Python finds its packages after a renaming.
    unfinished = place.with_name(f"{place.name}.{os.getpid()}")
    place.parent.mkdir(parents=True, exist_ok=True)
    python = unfinished / "bin" / "python"
    try:
        run([sys.executable, "-m", "venv", str(unfinished)])
        for name in PEERS[peer]:
            alone = ["--no-deps"] if name.endswith("_alone.txt") else []
            pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input", *alone]
            run([*pip, "-r", str(HERE / name)])
        if place.exists():  # another process was faster
            shutil.rmtree(unfinished)
        else:
            unfinished.rename(place)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return place / "bin" / "python"


def run(command: list[str]) -> None:
    """Runs a command; raises NotInstalled where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")]
        reason = (errors or said or [f"exit code {done.returncode}"])[-1]
        raise NotInstalled(f"{' '.join(command[1:5])}: {reason}")


def main() -> None:
    """Makes the environments that are named, or all."""
    unknown = set(sys.argv[1:]) - set(PEERS)
    if unknown:
        sys.exit(f"error: there is no {', '.join(sorted(unknown))}; choose of {', '.join(PEERS)}.")
    failed = False
    for peer in sys.argv[1:] or PEERS:
        try:
            print(f"{peer}: {make(peer)}", flush=True)
        except NotInstalled as error:
            failed = True
            print(f"{peer}: not installed: {error}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
