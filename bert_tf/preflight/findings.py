"""What a TPU program should not have, and what in it is large, with the lines it comes from."""

from __future__ import annotations

import math
import os
import re

import tensorflow as tf

# In HLO as it comes from TensorFlow; each with what it means on a TPU.
UNWANTED = (
    (re.compile(r"\[[^\]]*<=\d"), "a shape that is not static"),
    (re.compile(r"\bf64\["), "float64, which a TPU emulates"),
    (re.compile(r"\b(?:infeed|outfeed|send|recv)\("), "a transfer to or from the host"),
)
OP_NAME = re.compile(r'op_name="([^"]+)"')
# `{{node Some/AsString}}AsString (No registered 'AsString' OpKernel for XLA_TPU_JIT devices ...`
UNSUPPORTED = re.compile(r"\{\{node ([^}]+)\}\}|(\w+) \(No registered '\w+' OpKernel")
RESULT = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (\w+)\[([\d,]*)\]")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep  # ".../bert_tf/"


def unwanted(hlo: str, graph: tf.Graph) -> list[str]:
    """One sentence for each thing in the program that does not belong on a TPU."""
    found = []
    for line in hlo.splitlines():
        for pattern, meaning in UNWANTED:
            if pattern.search(line):
                name = OP_NAME.search(line)
                found.append(f"{meaning}: {described(name[1] if name else '', graph)}")
    return list(dict.fromkeys(found))


def unsupported(message: str, graph: tf.Graph) -> list[str]:
    """One sentence for each operation that the compiler's message refuses; none: other trouble."""
    names = [match[1] or match[2] for match in UNSUPPORTED.finditer(message)]
    names = list(dict.fromkeys(names))
    return [f"an operation that no TPU has: {described(name, graph)}" for name in names]


def described(name: str, graph: tf.Graph) -> str:
    """The name of an operation and, where it is known, the line of this package that made it."""
    try:
        operation = graph.get_operation_by_name(name)
    except (KeyError, ValueError):
        return name or "an operation without a name"
    frames = [frame for frame in operation.traceback if frame.filename.startswith(PACKAGE)]
    own = [
        frame for frame in frames if not frame.filename.startswith(f"{PACKAGE}preflight{os.sep}")
    ]
    if not own:
        return f"{name} ({operation.type})"
    path = os.path.join("bert_tf", os.path.relpath(own[-1].filename, PACKAGE))
    return f"{name} ({operation.type}, {path}:{own[-1].lineno})"


def largest_buffers(optimized: str, count: int = 5) -> list[tuple[float, str]]:
    """The largest results in the compiled program: GiB, and shape with the operation's name."""
    entry = optimized.partition("\nENTRY ")[2]
    sizes: dict[str, float] = {}
    for line in entry.splitlines():
        found = RESULT.match(line)
        if not found or found[1] not in BYTES or " parameter(" in line:
            continue
        name = OP_NAME.search(line)
        elements = math.prod(int(size) for size in found[2].split(",") if size)
        text = f"{found[1]}[{found[2]}] {name[1] if name else ''}".strip()
        sizes[text] = elements * BYTES[found[1]] / 2.0**30
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:count]
    return [(size, text) for text, size in largest]


# Of the compiler's list: `1. Size: 3.00G`, `Operator: op_name="..."`, `Shape: bf16[...]`.
ALLOCATION = re.compile(
    r"Size: ([\d.]+)([KMG])\s*\n\s*(?:Operator: op_name=\"([^\"]*)\".*\n\s*)?Shape: (\w+\[[\d,]*\])"
)
UNITS = {"K": 2.0**-20, "M": 2.0**-10, "G": 1.0, "T": 2.0**10}  # in GiB


def refused_buffers(message: str, count: int = 5) -> list[tuple[float, str]]:
    """The same from what the compiler says where a program does not fit."""
    sizes: dict[str, float] = {}
    for size, unit, name, shape in ALLOCATION.findall(message):
        sizes.setdefault(f"{shape} {name}".strip(), float(size) * UNITS[unit])
    return [(size, text) for text, size in list(sizes.items())[:count]]
