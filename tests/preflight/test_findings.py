"""What the preflight says of programs, from texts as the compiler writes them."""

from __future__ import annotations

import tensorflow as tf

from bert_tf import kernels
from bert_tf.preflight.findings import (
    described,
    largest_buffers,
    refused_buffers,
    unsupported,
    unwanted,
)

HLO = """HloModule a, entry_computation_layout={(f32[8,128]{1,0})->f32[8]{0}}

ENTRY main.1 {
  Arg_0.1 = f32[8,128]{1,0} parameter(0)
  where.2 = s64[<=8,1]{1,0} custom-call(Arg_0.1), metadata={op_name="Where"}
  convert.3 = f64[8,128]{1,0} convert(Arg_0.1), metadata={op_name="nothing/known"}
  outfeed.4 = token[] outfeed(convert.3, after-all.1)
  ROOT reduce.5 = f32[8]{0} reduce(Arg_0.1), metadata={op_name="Sum"}
}
"""

OPTIMIZED = """HloModule a

fused_computation {
  p = f32[9999,9999]{1,0} multiply(a, b)
}

ENTRY main.1 {
  p.1 = f32[4096,4096]{1,0} parameter(0)
  fusion.1 = bf16[128,12,512,512]{3,2,1,0} fusion(p.1), metadata={op_name="attention/Softmax"}
  fusion.2 = f32[1024,1024]{1,0} fusion(p.1), metadata={op_name="small"}
  ROOT t = (f32[4]{0}, bf16[2]{0}) tuple(fusion.1, fusion.2)
}
"""

REFUSAL = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in space \
hbm. Used 34.12G of 15.75G hbm. Exceeded hbm capacity by 18.37G.

  Largest program allocations in hbm:

  1. Size: 1.50G
     Operator: op_name="layer_2/attention/self/Softmax" source_file="x.py" source_line=3
     Shape: f32[128,12,512,512]{2,3,1,0:T(8,128)}
     Unpadded size: 1.50G
     ==========================

  2. Size: 768.00M
     Shape: bf16[128,12,512,512]{2,3,1,0:T(8,128)(2,1)}
     Unpadded size: 768.00M
     ==========================
"""

REFUSED_OPS = (
    "Detected unsupported operations when trying to compile graph pure on XLA_TPU_JIT: AsString "
    "(No registered 'AsString' OpKernel for XLA_TPU_JIT devices compatible with node "
    "{{node report/AsString}}){{node report/AsString}}"
)


def test_what_does_not_belong_on_a_tpu_is_named() -> None:
    found = unwanted(HLO, tf.Graph())
    assert found == [
        "a shape that is not static: Where",
        "float64, which a TPU emulates: nothing/known",
        "a transfer to or from the host: an operation without a name",
    ]
    assert not unwanted(OPTIMIZED, tf.Graph())


def test_operations_are_traced_to_their_lines() -> None:
    with tf.Graph().as_default() as graph:
        y = kernels.gelu(tf.zeros([2], tf.float64))
    name = y.op.name
    text = described(name, graph)
    assert text.startswith(f"{name} ({y.op.type}, bert_tf/kernels.py:")
    assert described("not/there", graph) == "not/there"


def test_unsupported_operations_are_named() -> None:
    assert unsupported(REFUSED_OPS, tf.Graph()) == [
        "an operation that no TPU has: AsString",
        "an operation that no TPU has: report/AsString",
    ]
    assert not unsupported("some other trouble", tf.Graph())


def test_the_largest_buffers() -> None:
    (first, second) = largest_buffers(OPTIMIZED)
    assert first == (0.75, "bf16[128,12,512,512] attention/Softmax")
    assert second == (4 / 1024, "f32[1024,1024] small")
    assert refused_buffers(REFUSAL) == [
        (1.5, "f32[128,12,512,512] layer_2/attention/self/Softmax"),
        (0.75, "bf16[128,12,512,512]"),
    ]
