"""How to use an exported folder: the part of a model card that depends on its format."""

from __future__ import annotations

from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.contract import Task
from bert_tf.tasks.question_answering import QuestionAnsweringTask

CLASSIFICATION = """```python
from transformers import pipeline

model = pipeline("text-classification", model="THIS_FOLDER", top_k=None{option})
model(["some text"], truncation=True)
model([{{"text": "some text", "text_pair": "other text"}}], truncation=True)  # for models of pairs
```"""
# A pipeline would squash scores to (0, 1), if it were not told.
OPTIONS = {"class": "", "multilabel": "", "regression": ', function_to_apply="none"'}
WITH_TRANSFORMERS = {
    "dual_encoder": """```python
from sentence_transformers import SentenceTransformer

SentenceTransformer("THIS_FOLDER").encode(["some text", "other text"])  # float32 [N, H]
```""",
    "multiple_choice": """```python
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForMultipleChoice.from_pretrained("THIS_FOLDER")
choices = ["jumps.", "reads a book."]
rows = tokenizer(
    ["The cat sees a bird. It"] * len(choices), choices, return_tensors="pt",
    padding=True, truncation=True,
)
with torch.no_grad():
    model(**{name: row[None] for name, row in rows.items()}).logits.softmax(-1)  # [1, C]
```""",
    "pretraining": """```python
from transformers import pipeline

pipeline("fill-mask", model="THIS_FOLDER")("The [MASK] sat on the mat.")
```""",
    "question_answering": """```python
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForQuestionAnswering.from_pretrained("THIS_FOLDER")
row = tokenizer(
    "Where is Al?", "Al is in Rome.", return_tensors="pt", truncation="only_second"
)
with torch.no_grad():
    outputs = model(**row)  # start_logits and end_logits [1, S]
start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
tokenizer.decode(row["input_ids"][0, start : end + 1])
```

A good client takes the best pair with start <= end inside the text, and cuts a long text into
overlapping windows.""",
    "tagging": """```python
from transformers import pipeline

model = pipeline("token-classification", model="THIS_FOLDER", aggregation_strategy="first")
model("Al in Rome")
```

The first piece of a word carries its tag.""",
}
WITH_ONNXRUNTIME = """```python
import numpy as np
import onnxruntime
import tokenizers

tokenizer = tokenizers.Tokenizer.from_file("THIS_FOLDER/tokenizer.json")
tokenizer.enable_truncation({length})
tokenizer.enable_padding(pad_id={pad_id})
session = onnxruntime.InferenceSession("THIS_FOLDER/{file}")
rows = tokenizer.encode_batch(["some text", "other text"])  # a pair of texts: ("some", "other")
inputs = {{
    "token_ids": np.array([row.ids for row in rows]),  # int64 [N, S]
    "segment_ids": np.array([row.type_ids for row in rows]),
    "mask": np.array([row.attention_mask for row in rows]),  # 0 on padding
}}
outputs = session.run(None, inputs)
dict(zip([output.name for output in session.get_outputs()], outputs))
```

{models}N and S are any from 1 on. `model_card.json` has types, shapes and the names of labels."""


def with_transformers(task: Task) -> str:
    """How transformers or sentence-transformers use the folder of a task."""
    if isinstance(task, ClassificationTask):
        return CLASSIFICATION.format(option=OPTIONS[task.labels.kind])
    text = WITH_TRANSFORMERS[task.run.task.name]
    if isinstance(task, QuestionAnsweringTask) and task.run.task.no_answer:
        text += (
            "\n\nThere is no answer where the two logits of [CLS] together are more than "
            f"{task.no_answer_threshold:.4f} above those of the best span."
        )
    return text


def with_onnxruntime(files: list[str], max_seq_length: int, pad_id: int) -> str:
    """How onnxruntime and the tokenizers library use a folder with these models."""
    models = f"Each task has a model: {', '.join(files)}. " if len(files) > 1 else ""
    return WITH_ONNXRUNTIME.format(
        file=files[0], length=max_seq_length, pad_id=pad_id, models=models
    )
