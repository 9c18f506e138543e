"""A tiny BERT whose weights follow from their names, for the tests of checkpoints.

    PYTHONPATH=. python tests/tiny_checkpoint.py

writes tests/goldens/tf1_tiny with the TF1 Saver, as the original release did.
"""

from __future__ import annotations

import pathlib
import zlib

import numpy as np

from bert_tf.config import BertConfig, write_json

CONFIG = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=12,
)
GOLDEN = pathlib.Path(__file__).parent / "goldens" / "tf1_tiny" / "uncased_L-2_H-8_A-2"
LAYER_SHAPES = {
    "attention/self/query/kernel": (8, 8),
    "attention/self/query/bias": (8,),
    "attention/self/key/kernel": (8, 8),
    "attention/self/key/bias": (8,),
    "attention/self/value/kernel": (8, 8),
    "attention/self/value/bias": (8,),
    "attention/output/dense/kernel": (8, 8),
    "attention/output/dense/bias": (8,),
    "attention/output/LayerNorm/gamma": (8,),
    "attention/output/LayerNorm/beta": (8,),
    "intermediate/dense/kernel": (8, 16),
    "intermediate/dense/bias": (16,),
    "output/dense/kernel": (16, 8),
    "output/dense/bias": (8,),
    "output/LayerNorm/gamma": (8,),
    "output/LayerNorm/beta": (8,),
}
ENCODER_SHAPES = {
    "bert/embeddings/word_embeddings": (30, 8),
    "bert/embeddings/position_embeddings": (12, 8),
    "bert/embeddings/token_type_embeddings": (2, 8),
    "bert/embeddings/LayerNorm/gamma": (8,),
    "bert/embeddings/LayerNorm/beta": (8,),
    **{f"bert/encoder/layer_0/{name}": shape for name, shape in LAYER_SHAPES.items()},
    **{f"bert/encoder/layer_1/{name}": shape for name, shape in LAYER_SHAPES.items()},
}
POOLER_SHAPES = {"bert/pooler/dense/kernel": (8, 8), "bert/pooler/dense/bias": (8,)}
MASKED_LM_SHAPES = {
    "cls/predictions/transform/dense/kernel": (8, 8),
    "cls/predictions/transform/dense/bias": (8,),
    "cls/predictions/transform/LayerNorm/gamma": (8,),
    "cls/predictions/transform/LayerNorm/beta": (8,),
    "cls/predictions/output_bias": (30,),
}
NEXT_SENTENCE_SHAPES = {
    "cls/seq_relationship/output_weights": (2, 8),
    "cls/seq_relationship/output_bias": (2,),
}
SQUAD_SHAPES = {"cls/squad/output_weights": (2, 8), "cls/squad/output_bias": (2,)}
CLASSIFIER_SHAPES = {"output_weights": (3, 8), "output_bias": (3,)}
# What each kind of model holds, and the transformers class that it is.
MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "BertModel": ENCODER_SHAPES | POOLER_SHAPES,
    "BertForMaskedLM": ENCODER_SHAPES | MASKED_LM_SHAPES,
    "BertForNextSentencePrediction": ENCODER_SHAPES | POOLER_SHAPES | NEXT_SENTENCE_SHAPES,
    "BertForPreTraining": ENCODER_SHAPES | POOLER_SHAPES | MASKED_LM_SHAPES | NEXT_SENTENCE_SHAPES,
    "BertForQuestionAnswering": ENCODER_SHAPES | SQUAD_SHAPES,
    "BertForSequenceClassification": ENCODER_SHAPES | POOLER_SHAPES | CLASSIFIER_SHAPES,
}


def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 that depends on the name and the position alone, exact in bfloat16 too."""
    numbers = np.arange(np.prod(shape, dtype=np.int64)) * 7 + zlib.crc32(name.encode())
    return (((numbers % 101) - 50) / 64).astype(np.float32).reshape(shape)


def weights(model: str = "BertForPreTraining") -> dict[str, np.ndarray]:
    """All weights of one of MODELS by original name."""
    return {name: value(name, shape) for name, shape in MODELS[model].items()}


def write_vocab(path: pathlib.Path, pieces: int = CONFIG.vocab_size) -> None:
    """A vocabulary of the five special pieces and letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(ord("a") + index) for index in range(pieces - len(special))]
    path.write_text("".join(f"{piece}\n" for piece in special + letters), encoding="utf-8")


def write_golden() -> None:
    """A pre-training checkpoint with Adam slots and a step counter, saved by TF1's own Saver."""
    import tensorflow as tf

    GOLDEN.mkdir(parents=True, exist_ok=True)
    tensors = weights()
    slots = {
        f"{name}/{slot}": value(f"{name}/{slot}", tensors[name].shape)
        for name in tensors
        for slot in ("adam_m", "adam_v")
    }
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        for name, tensor in (tensors | slots).items():
            v1.get_variable(name, initializer=tensor, use_resource=False)
        v1.get_variable("global_step", initializer=np.int64(20), use_resource=False)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(
            session,
            str(GOLDEN / "bert_model.ckpt"),
            write_meta_graph=False,
            write_state=False,
        )
    write_json(str(GOLDEN / "bert_config.json"), CONFIG.to_dict() | {"pooler_fc_size": 768})
    write_vocab(GOLDEN / "vocab.txt")


if __name__ == "__main__":
    write_golden()
