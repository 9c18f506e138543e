"""Asks TF Serving over HTTP: texts in, a line of JSON for each out. Needs Python and nothing else.

    docker run --rm -p 8501:8501 -v "$PWD/runs/sst2/export:/models/sst2" -e MODEL_NAME=sst2 \
        tensorflow/serving:2.20.0

    python scripts/ask_rest.py --model=sst2 "A joy from start to finish." "Dull."
    python scripts/ask_rest.py --model=sst2 --version=canary "Dull."      # or a number
    python scripts/ask_rest.py --model=nli \
        --instances='[{"text_a": "A cat sat.", "text_b": "An animal sat."}]'
    python scripts/ask_rest.py --model=three --signature=wnut17 --instances=- < posts.json

Texts on the command line are for signatures with one input; `--instances` is a JSON list with an
object for each example, its inputs by name, for any signature.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any


def main(arguments: list[str] | None = None) -> None:
    """Sends one request and prints the answers."""
    parser = argparse.ArgumentParser(description="Asks TF Serving over HTTP.")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="for signatures of one input")
    parser.add_argument("--server", default="http://localhost:8501")
    parser.add_argument("--model", required=True, help="its name on the server")
    parser.add_argument("--version", default="", help="a number, or a label such as canary")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--instances", default="", help="JSON list of examples; - reads it")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds")
    flags = parser.parse_args(arguments)
    try:
        instances = examples(flags.texts, flags.instances)
        url = address(flags.server, flags.model, flags.version)
        request = {"signature_name": flags.signature, "instances": instances}
        for prediction in ask(url, request, flags.timeout)["predictions"]:
            print(json.dumps(prediction, ensure_ascii=False))
    except ValueError as error:
        sys.exit(f"error: {error}")


def examples(texts: list[str], instances: str) -> list[Any]:
    """The examples of the command line; raises ValueError where there are none or no JSON list."""
    if bool(texts) == bool(instances):
        raise ValueError("give texts, or --instances with a JSON list of examples; one of the two.")
    if texts:
        return texts
    try:
        parsed = json.loads(sys.stdin.read() if instances == "-" else instances)
    except json.JSONDecodeError as error:
        raise ValueError(f"--instances is not JSON: {error}.") from None
    if not isinstance(parsed, list) or not parsed:
        raise ValueError('--instances must be a list, such as [{"text": "Dull."}].')
    return parsed


def address(server: str, model: str, version: str) -> str:
    """Where the model answers; `version` is a number, a label, or "" for the newest one."""
    kind = "versions" if version.isdecimal() else "labels"
    part = f"/{kind}/{version}" if version else ""
    return f"{server.rstrip('/')}/v1/models/{model}{part}:predict"


def ask(url: str, request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The server's answer; raises ValueError where there is none, or a refusal."""
    content = json.dumps(request).encode()
    sent = urllib.request.Request(url, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ValueError(f"the server refused the request ({error.code}): {told(error)}") from None
    except OSError as error:  # URLError among them
        raise ValueError(
            f"no server answers at {url} ({getattr(error, 'reason', error)}). Start TF Serving, as "
            "the first lines of this script say, or name it with --server."
        ) from None
    except json.JSONDecodeError:
        raise ValueError(f"{url} does not answer JSON: it is not TF Serving.") from None


def told(error: urllib.error.HTTPError) -> str:
    """What the server says of its refusal."""
    content = error.read().decode(errors="replace")
    try:
        return json.loads(content)["error"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return content.strip() or error.reason


if __name__ == "__main__":
    main()
