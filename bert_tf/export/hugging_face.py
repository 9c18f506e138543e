"""A trained run as a folder of transformers, task head included.

```
FOLDER/config.json, model.safetensors                       the model, for `from_pretrained`
FOLDER/vocab.txt, tokenizer.json, tokenizer_config.json     its tokenizer
FOLDER/README.md                                            the model card
FOLDER/modules.json, sentence_bert_config.json,
       config_sentence_transformers.json, 1_Pooling/        of dual encoders: sentence-transformers
```
transformers computes the same logits. Two things differ around them: a question's padding gets
`MASKED_SCORE` here and is left alone there, and `task.constrained` (Viterbi) has no counterpart.

Of a run of several tasks each becomes a folder of its own, FOLDER/NAME, that ends at its layer.
"""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf

from bert_tf import hugging_face
from bert_tf.config import write_json
from bert_tf.conversion import new_folder
from bert_tf.export.card import labels_of, markdown_card, write_text
from bert_tf.export.single_tasks import SingleTask, single_tasks
from bert_tf.export.tokenizer_files import write_tokenizer
from bert_tf.export.usage import with_transformers
from bert_tf.restore import OpenedRun
from bert_tf.tasks.classification import ClassificationTask

# The class of each task. That of pre-training depends on the heads, which tell it themselves.
ARCHITECTURES = {
    "classification": "BertForSequenceClassification",
    "dual_encoder": "BertModel",
    "multiple_choice": "BertForMultipleChoice",
    "pretraining": "",
    "question_answering": "BertForQuestionAnswering",
    "tagging": "BertForTokenClassification",
}
PROBLEM_TYPES = {
    "class": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
WITH_DROPOUT = ("classification", "multiple_choice", "tagging")  # before the head
POOLING_MODES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
}


def export_hugging_face(opened: OpenedRun, folder: str) -> str:
    """Writes a folder that transformers' `from_pretrained` reads, whole or not at all.

    Args:
        opened: from `restore.open_run` or `restore.open_checkpoint`.
        folder: new or empty; gs:// works.

    Returns:
        The folder.

    Raises:
        ValueError: transformers has no such model, or the folder is not empty or cannot be written.
    """
    singles = single_tasks(opened)
    for name, single in singles.items():
        check_expressible(name, single)
    with new_folder(folder) as temporary:
        for name, single in singles.items():
            write_model(os.path.join(temporary, name), single)
    return folder


def check_expressible(name: str, single: SingleTask) -> None:
    """Raises ValueError for a model that transformers has no class for."""
    if single.opened.run.task.feature_layers:
        raise ValueError(
            "transformers has no class for a BiLSTM on the layers of a BERT "
            f"(config.task.feature_layers={single.opened.run.task.feature_layers}). Export a "
            "SavedModel or ONNX, or train with feature_layers=0."
        )
    if single.shortcut:
        raise ValueError(
            "transformers has no class for a head that reads the embeddings beside its layer "
            f"(config.tasks.{name}.shortcut=True). Export a SavedModel or ONNX, or train the task "
            "without shortcut."
        )


def write_model(folder: str, single: SingleTask) -> None:
    """Writes the files of one task."""
    opened = single.opened
    is_dual_encoder = opened.run.task.name == "dual_encoder"
    library = "sentence-transformers" if is_dual_encoder else "transformers"
    tf.io.gfile.makedirs(folder)
    write_json(os.path.join(folder, hugging_face.CONFIG_FILE), config_values(single))
    hugging_face.write_safetensors(
        os.path.join(folder, hugging_face.SINGLE_FILE), hugging_face.from_original(single.weights)
    )
    write_tokenizer(folder, opened.task.tokenizer, opened.run.data.max_seq_length)
    if is_dual_encoder:
        write_sentence_transformer(folder, opened)
    card = markdown_card(opened, library, with_transformers(opened.task))
    write_text(os.path.join(folder, "README.md"), card)


def config_values(single: SingleTask) -> dict[str, Any]:
    """The content of `config.json`."""
    task, settings = single.opened.task, single.opened.run.task
    values = hugging_face.config_values(
        task.config, single.weights, labels_of(task), ARCHITECTURES[settings.name]
    )
    if settings.name in WITH_DROPOUT:
        values["classifier_dropout"] = settings.dropout
    if isinstance(task, ClassificationTask):
        values["problem_type"] = PROBLEM_TYPES[task.labels.kind]
    return values


def write_sentence_transformer(folder: str, opened: OpenedRun) -> None:
    """Writes the files that make it a model of sentence-transformers."""
    settings = opened.run.task
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if settings.normalize:
        modules.append(("Normalize", "2_Normalize"))  # it has no files
    rows = [
        {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for number, (name, path) in enumerate(modules)
    ]
    transformer = {
        "max_seq_length": opened.run.data.max_seq_length,
        "do_lower_case": False,  # the tokenizer does
        "model_args": {"add_pooling_layer": False},  # BERT's own, which nothing reads
    }
    pooling = {"word_embedding_dimension": opened.task.config.hidden_size} | {
        mode: name == settings.pooling for name, mode in POOLING_MODES.items()
    }
    tf.io.gfile.makedirs(os.path.join(folder, "1_Pooling"))
    write_text(os.path.join(folder, "modules.json"), json.dumps(rows, indent=2) + "\n")
    write_json(os.path.join(folder, "config_sentence_transformers.json"), {"prompts": {}})
    write_json(os.path.join(folder, "sentence_bert_config.json"), transformer)
    write_json(os.path.join(folder, "1_Pooling", "config.json"), pooling)
