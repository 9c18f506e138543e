"""The TPU compiler (`libtpu`), on a machine without a TPU.

TensorFlow's TPU bridge lowers a program to HLO, jaxlib turns that into StableHLO, and libtpu
compiles it for a topology that is only described. Nothing here runs on a TPU. Private calls of
jaxlib: `environment.py` pins it.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from typing import Any, TypeAlias

import numpy as np

from bert_tf.preflight.findings import UNITS
from bert_tf.preflight.program import Program

# Types of jaxlib, which is not in the project's own environment.
Topology: TypeAlias = Any
Executable: TypeAlias = Any
Module: TypeAlias = Any
Operation: TypeAlias = Any
Result: TypeAlias = Any

GIB = float(1 << 30)
# Where not the whole of a host is asked for, libtpu must be told how much of it.
ONE_HOST = {"1x1": (1, 1, 1), "1x1x1": (1, 1, 1), "2x2": (2, 2, 1), "2x2x1": (2, 2, 1)}
EXHAUSTED = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program."""

    seconds: float  # that it took
    hlo: str  # the program before it was optimized
    hbm_used: float  # GiB on each device
    flops: float  # of one step of one replica; 0 where it does not fit
    bytes_accessed: float
    optimized: str  # HLO text; "" where it does not fit
    refusal: str  # the compiler's message; "" where it fits


@functools.cache
def topology(name: str) -> Topology:
    """A described TPU slice, such as `v5e:2x2`; raises ValueError where libtpu knows none such."""
    from jax.experimental import topologies  # in the environment of `environment.py` alone

    shape = name.partition(":")[2]
    bounds = {"chips_per_host_bounds": ONE_HOST[shape]} if shape in ONE_HOST else {}
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu", **bounds)
    except Exception as error:
        raise ValueError(
            f"--topology={name} is none that libtpu knows ({str(error).splitlines()[0]}); write "
            "TYPE:SHAPE, such as v5e:1x1, v5e:2x2, v6e:2x2, v4:2x2x1 or v5p:2x2x1."
        ) from None


def compile_program(program: Program, name: str) -> Compiled:
    """Compiles a program for every chip of a topology."""
    started = time.monotonic()
    hlo = program.function.experimental_get_compiler_ir(*program.specs)(
        stage="hlo_serialized", platform_name="TPU"
    )
    text = hlo_text(hlo)
    try:
        executable = compile_hlo(hlo, program.aliases, topology(name))
    except Exception as error:
        return refused(str(error), text, time.monotonic() - started)
    memory, cost = executable.get_compiled_memory_stats(), executable.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    used = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    optimized = "\n".join(module.to_string() for module in executable.hlo_modules())
    return Compiled(
        seconds=time.monotonic() - started,
        hlo=text,
        hbm_used=max(used, memory.peak_memory_in_bytes) / GIB,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        optimized=optimized,
        refusal="",
    )


def refused(message: str, hlo: str, seconds: float) -> Compiled:
    """What a message of the compiler says; raises RuntimeError where it is not about memory."""
    found = EXHAUSTED.search(message)
    if not found:
        raise RuntimeError(message)
    used, unit = found.groups()
    return Compiled(
        seconds=seconds,
        hlo=hlo,
        hbm_used=float(used) * UNITS[unit],
        flops=0.0,
        bytes_accessed=0.0,
        optimized="",
        refusal=message,
    )


def hlo_text(hlo: bytes) -> str:
    """A serialized HloModuleProto, to be read."""
    from jaxlib import _jax

    return _jax.XlaComputation(hlo).as_hlo_text()


def compile_hlo(hlo: bytes, aliases: list[tuple[int, int]], described: Topology) -> Executable:
    """From HLO to an executable for every chip; raises what the compiler raises."""
    from jax._src.interpreters import mlir as jax_mlir
    from jax._src.lib.mlir import ir
    from jaxlib import _jax, xla_client

    devices = np.array(described.devices)
    options = xla_client.CompileOptions()
    build = options.executable_build_options
    for target in (options, build):
        target.num_replicas, target.num_partitions = len(devices), 1
    numbers = np.array([device.id for device in devices]).reshape(-1, 1)
    build.device_assignment = xla_client.DeviceAssignment.create(numbers)
    with jax_mlir.make_ir_context():
        module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
        drop_copies(module)
        share_memory(module, aliases)
        client = devices[0].client
        return client.compile(
            module, executable_devices=_jax.DeviceList(tuple(devices)), compile_options=options
        )


def drop_copies(module: Module) -> None:
    """StableHLO has no twin of HLO's `copy`, which changes no value."""
    from jax._src.lib.mlir import ir

    copies: list[Any] = []

    def visit(operation: Operation) -> Result:
        if operation.name == "mhlo.copy":
            copies.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    for operation in copies:
        operation.result.replace_all_uses_with(operation.operands[0])
        operation.erase()


def share_memory(module: Module, aliases: list[tuple[int, int]]) -> None:
    """Marks arguments whose memory an output takes: variables that the step updates."""
    from jax._src.lib.mlir import ir

    (main,) = (
        operation
        for operation in module.body.operations
        if operation.operation.name == "func.func"
        and ir.StringAttr(operation.operation.attributes["sym_name"]).value == "main"
    )
    count = len(ir.TypeAttr(main.operation.attributes["function_type"]).value.inputs)
    attributes = [
        {named.name: named.attr for named in ir.DictAttr(each)}
        for each in (
            main.operation.attributes["arg_attrs"]
            if "arg_attrs" in main.operation.attributes
            else [ir.DictAttr.get({})] * count
        )
    ]
    for output, argument in aliases:
        number = ir.IntegerAttr.get(ir.IntegerType.get_signless(32), output)
        attributes[argument]["tf.aliasing_output"] = number
    main.operation.attributes["arg_attrs"] = ir.ArrayAttr.get(
        [ir.DictAttr.get(each) for each in attributes]
    )
