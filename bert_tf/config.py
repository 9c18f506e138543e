"""Typed configuration: the shape of a BERT (`BertConfig`) and one run (`RunConfig`).

Every default of the project lives here. A recipe in `configs/` returns a `RunConfig`; flags
override single fields; the resolved configuration is written to the run folder, where evaluation,
prediction and export read it back.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, TypeVar

import tensorflow as tf

VERSION = "0.1.0"  # of this package; pyproject.toml reads it from here

# The original release's "gelu" computes the tanh approximation; Hugging Face's "gelu" the exact erf
# form. Inside this package the names mean what they say, and the readers below translate.
ACTIVATIONS = ("gelu", "gelu_approximate", "relu", "tanh")
HUGGING_FACE_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_approximate",
    "gelu_pytorch_tanh": "gelu_approximate",
    "relu": "relu",
    "tanh": "tanh",
}
ORIGINAL_ACTIVATIONS = {"gelu": "gelu_approximate", "relu": "relu", "tanh": "tanh"}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Shape of the encoder, with the field names of the original release's `bert_config.json`."""

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_approximate"  # "gelu" is the erf form, "gelu_approximate" the tanh form
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12  # tf.contrib's default, in the original release; not in the paper

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that cannot make an encoder."""
        for name in (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"BertConfig.{name}={getattr(self, name)} must be at least 1.")
        if self.num_hidden_layers < 0:
            raise ValueError(
                f"BertConfig.num_hidden_layers={self.num_hidden_layers} must be at least 0."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BertConfig.hidden_size={self.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}; each head needs the same whole "
                "number of units."
            )
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(
                f"BertConfig.hidden_act={self.hidden_act!r} is unknown; choose one of "
                f"{', '.join(ACTIVATIONS)}."
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"BertConfig.{name}={getattr(self, name)} must be in [0, 1).")

    @property
    def head_size(self) -> int:
        """Units of one attention head, D = H / N."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_file(cls, path: str) -> BertConfig:
        """Reads the original `bert_config.json` or Hugging Face's `config.json`.

        The second is told by its `model_type`.

        Raises:
            ValueError: the file is missing, is not JSON, is not of a BERT, or has impossible sizes.
        """
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} does not describe a BERT: {error}") from None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BertConfig:
        """Translates the keys of the original release, of Hugging Face, or of `to_dict`.

        Keys that describe something else are ignored.
        """
        from_hugging_face = "model_type" in values
        if from_hugging_face:
            refuse_other_architectures(values)
        names = HUGGING_FACE_ACTIVATIONS if from_hugging_face else ORIGINAL_ACTIVATIONS
        activation = values.get("hidden_act", "gelu")
        # `exact_gelu` is this package's own key: the original release cannot say "erf form", and it
        # ignores keys that it does not know.
        activation = "gelu" if values.get("exact_gelu") else names.get(activation, activation)
        known = {field.name for field in dataclasses.fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        return build_dataclass(cls, kept | {"hidden_act": activation}, path="")

    def to_dict(self) -> dict[str, Any]:
        """The original release's keys, readable by its code; see `from_dict` for `exact_gelu`."""
        values = dataclasses.asdict(self)
        if self.hidden_act in ("gelu", "gelu_approximate"):
            values |= {"hidden_act": "gelu", "exact_gelu": self.hidden_act == "gelu"}
        return values

    def to_hugging_face(self) -> dict[str, Any]:
        """The keys of Hugging Face's `config.json` for a BERT."""
        names = {"gelu": "gelu", "gelu_approximate": "gelu_pytorch_tanh"}
        return dataclasses.asdict(self) | {
            "model_type": "bert",
            "hidden_act": names.get(self.hidden_act, self.hidden_act),
            "position_embedding_type": "absolute",
            "pad_token_id": 0,
        }


def refuse_other_architectures(values: dict[str, Any]) -> None:
    """Raises ValueError for a Hugging Face model that this encoder would compute wrongly."""
    if values["model_type"] != "bert":
        raise ValueError(f"model_type is {values['model_type']!r}; only 'bert' can be read.")
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(
            f"position_embedding_type is {values['position_embedding_type']!r}; "
            "only 'absolute' is BERT's."
        )
    if values.get("is_decoder") or values.get("add_cross_attention"):
        raise ValueError("is_decoder/add_cross_attention is set; only encoders can be read.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Which encoder, with which weights."""

    # TF1 checkpoint (prefix or folder), Hugging Face folder, or run folder; "": random weights
    init_checkpoint: str = ""
    bert_config: str = ""  # bert_config.json; needed only where init_checkpoint brings none
    vocab_file: str = ""  # needed only where init_checkpoint brings none
    lower_case: str = "auto"  # "auto" takes the checkpoint's own casing; "true", "false"
    strip_accents: str = "auto"  # "auto" follows lower_case; "true", "false"
    hidden_dropout: float = -1.0  # -1: the checkpoint's own rate
    attention_dropout: float = -1.0
    recompute: bool = False  # activations, in the backward pass: less memory, a third more time
    num_layers: int = 0  # only the first layers of init_checkpoint, for a smaller model; 0: all


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the examples are and how they are cut.

    Files are TSV, CSV or JSONL by their ending; `tfds:NAME/SPLIT` reads a TensorFlow Dataset. For
    pre-training they are patterns of TFRecord files, or of token shards to train on, for question
    answering files of SQuAD's form; with commas between several.
    """

    train: str = ""
    dev: str = ""
    test: str = ""
    data_dir: str = ""  # GLUE folder (as downloaded), or the tfds data folder
    header: bool = True  # the first line of a TSV or CSV names the columns
    text_a: str = "text"  # column name, or its number from 0 where there is no header
    text_b: str = ""  # second segment; "" for single sentences
    negative: str = ""  # dual encoder: column of a text that does not belong to text_a
    label: str = "label"
    choices: str = "choices"  # multiple choice: a column of lists, or columns with commas between
    label_separator: str = ","  # between the labels of one example (multi-label)
    max_seq_length: int = 128
    doc_stride: int = 128  # question answering: pieces from the start of a window to the next
    max_query_length: int = 64  # question answering: pieces of a question; the rest is cut off
    window_stride: int = 0  # pieces between windows of a long text; 0: half a window. Tagging
    bucket_window: int = 50  # batches that are sorted by length together; 1 keeps plain shuffling
    service: str = ""  # grpc://HOST:PORT of scripts/data_service.py, which makes the batches

    def check_length(self, config: BertConfig) -> None:
        """Raises ValueError where rows may be longer than the model's position table."""
        if self.max_seq_length > config.max_position_embeddings:
            raise ValueError(
                f"config.data.max_seq_length={self.max_seq_length} exceeds the position table of "
                f"the model (max_position_embeddings={config.max_position_embeddings}); lower it, "
                "or use a model with a longer table (scripts/extend_checkpoint.py makes one)."
            )


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """What is learnt."""

    name: str = "classification"  # a key of bert_tf.tasks.TASKS
    glue: str = ""  # a key of bert_tf.data.glue.GLUE; it fills in columns, labels and metrics
    kind: str = "class"  # "class", "multilabel" or "regression"
    dropout: float = 0.1  # before the classifier, as in the original release
    no_answer: bool = False  # question answering: the text may hold no answer (SQuAD 2.0)
    max_answer_length: int = 30  # question answering: pieces of the longest answer
    n_best: int = 20  # question answering: answers in nbest_predictions.json
    constrained: bool = False  # tagging: no I-X but behind B-X or I-X (Viterbi)
    feature_layers: int = 0  # tagging: a BiLSTM reads the last layers of a frozen encoder; 0: none
    split_words: bool = False  # tagging: learn the parts of words that served text is split into
    pooling: str = "mean"  # dual encoder: "mean", "max" or "cls"
    normalize: bool = True  # dual encoder: whether exported vectors have length 1
    scale: float = 20.0  # dual encoder: of cosines in the loss, the inverse of a temperature
    min_score: float = 0.0  # dual encoder: training pairs with a lower label are left out
    next_sentence: bool = True  # pre-training: False learns masked words alone, without a pooler
    # The others are for pre-training on token shards; in records all of this is decided. They are
    # the flags of scripts/create_pretraining_data.py.
    masked_lm_prob: float = 0.15
    max_predictions_per_seq: int = 20
    short_seq_prob: float = 0.1
    whole_words: str = ""  # "per_piece" or "per_word" masks whole words
    packed_sequences: int = 1  # sequences that may share a row without seeing each other


@dataclasses.dataclass(frozen=True)
class PartConfig:
    """One of several tasks that are learnt at once (config.task.name=multi_task)."""

    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    layer: int = 0  # of the encoder that its head reads, from 1, the lowest; 0: the top
    shortcut: bool = False  # its head reads the embeddings, too
    loss_weight: float = 1.0
    share: float = 0.0  # of all steps, in proportion to those of the others; see sampling


@dataclasses.dataclass(frozen=True)
class MultiTaskConfig:
    """Which of several tasks a step is of."""

    sampling: str = "size"  # of their training data; "square_root" of it, or given "shares"
    steps_per_draw: int = 1  # steps of one task in a row; more save the device a look of the host


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    name: str = "adamw"  # "adamw" (bias-corrected), "bert_adamw" (original release), "lamb", "sgd"
    learning_rate: float = 5e-5
    warmup_proportion: float = 0.1  # of all steps
    schedule: str = "linear"  # after the warm-up: "linear", "polynomial" or "constant"
    power: float = 1.0  # of the polynomial
    end_learning_rate: float = 0.0
    weight_decay: float = 0.01  # not on biases and LayerNorm
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    clip_norm: float = 1.0  # of the global gradient; 0 does not clip
    frozen: str = ""  # weights whose names begin so stay as they are, such as "bert/"
    layer_decay: float = 1.0  # layer l learns at rate * layer_decay ** (layers above it)


AT_LEAST_1 = (
    "global_batch_size",
    "accumulation",
    "steps_per_loop",
    "eval_batch_size",
    "save_every",
    "log_every",
    "keep_checkpoints",
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, how often, and with which seed."""

    global_batch_size: int = 32
    epochs: float = 3.0
    steps: int = 0  # overrides epochs where not 0
    accumulation: int = 1  # micro-batches a step; the global batch stays the same
    steps_per_loop: int = 50  # steps on the device between two looks of the host
    eval_batch_size: int = 128
    eval_every: int = 0  # steps; 0: only at the end
    save_every: int = 500  # steps
    log_every: int = 50  # steps
    keep_checkpoints: int = 2
    best_metric: str = ""  # "" takes the task's own
    early_stopping: int = 0  # evaluations without a better metric; 0 never stops early
    seed: int = 1
    deterministic: bool = True

    def check(self, replicas: int) -> None:
        """Raises ValueError for numbers that cannot work on these replicas."""
        for name in AT_LEAST_1:
            if getattr(self, name) < 1:
                raise ValueError(f"config.train.{name}={getattr(self, name)} must be at least 1.")
        if self.steps < 0 or self.epochs <= 0:
            raise ValueError(
                "config.train.epochs must be above 0 and config.train.steps at least 0."
            )
        if self.global_batch_size % (replicas * self.accumulation):
            raise ValueError(
                f"config.train.global_batch_size={self.global_batch_size} must be a multiple of "
                f"{replicas} replica(s) x accumulation {self.accumulation} = "
                f"{replicas * self.accumulation}."
            )
        if self.eval_batch_size % replicas:
            raise ValueError(
                f"config.train.eval_batch_size={self.eval_batch_size} must be a multiple of the "
                f"{replicas} replicas."
            )


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """A teacher for classification and tagging: a trained run, whose answers are learnt, too."""

    teacher: str = ""  # its run folder; "": there is none
    temperature: float = 1.0  # T: above 1 it makes the teacher's probabilities softer
    alpha: float = 1.0  # share of the teacher in the loss, the rest is the labels' (Turc et al.: 1)
    unlabelled: str = ""  # more texts for the teacher, files like data.train, with commas between
    cache: str = ""  # folder of the teacher's logits; "": `teacher` in the run folder


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """What it runs on."""

    accelerator: str = "auto"  # "auto", "cpu", "gpu", "tpu", "multi_worker"
    tpu: str = "local"
    replicas: int = 1  # logical replicas, on CPU only
    dtype: str = "auto"  # "auto", "float32", "bfloat16", "float16"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run, as a recipe in `configs/` returns it."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)
    multi_task: MultiTaskConfig = dataclasses.field(default_factory=MultiTaskConfig)
    # Several tasks at once, by name; `task` then says so, and `data` is not read.
    tasks: dict[str, PartConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError where several tasks are given to a run of one, or the reverse."""
        if (self.task.name == "multi_task") != bool(self.tasks):
            raise ValueError(
                f"config.task.name={self.task.name!r} and config.tasks={sorted(self.tasks)} do not "
                "go together: name the task multi_task and give it some tasks, or neither."
            )

    def part(self, name: str) -> RunConfig:
        """The run of one of several tasks as if it were alone."""
        part = self.tasks[name]
        return dataclasses.replace(self, task=part.task, data=part.data, tasks={})

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Raises ValueError for unknown keys and wrong types, naming the valid keys."""
        return build_dataclass(cls, values, path="")


Config = TypeVar("Config")


def build_dataclass(cls: type[Config], values: dict[str, Any], path: str) -> Config:
    """Makes the dataclass `cls` from a nested dict, checking keys and types.

    `path` is the dotted place that errors name.
    """
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"config.{path}{key} does not exist.{hint} Valid keys: {', '.join(hints)}."
            )
    return cls(
        **{key: typed_value(hints[key], value, f"{path}{key}") for key, value in values.items()}
    )


def typed_value(expected: Any, value: Any, path: str) -> Any:  # noqa: ANN401 - any field's type
    """Returns `value` as `expected` (int widens to float); raises ValueError naming the field."""
    if dataclasses.is_dataclass(expected) and isinstance(value, dict):
        return build_dataclass(typing.cast(type, expected), value, path + ".")
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if typing.get_origin(expected) is dict and isinstance(value, dict):
        of_values = typing.get_args(expected)[1]
        return {key: typed_value(of_values, each, f"{path}.{key}") for key, each in value.items()}
    if isinstance(expected, types.GenericAlias) and isinstance(value, (list, tuple)):
        return tuple(value)
    if (isinstance(value, bool) and expected is not bool) or not isinstance(value, expected):
        raise ValueError(
            f"config.{path}={value!r} must be {getattr(expected, '__name__', expected)}, "
            f"not {type(value).__name__}."
        )
    return value


def read_json(path: str) -> dict[str, Any]:
    """Reads a JSON object from a local or `gs://` file; raises ValueError naming the file."""
    if not tf.io.gfile.exists(path):
        raise ValueError(f"{path} does not exist.")
    with tf.io.gfile.GFile(path) as file:
        try:
            values = json.loads(file.read())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, not a {type(values).__name__}.")
    return values


def write_json(path: str, values: dict[str, Any]) -> None:
    """Writes a JSON object to a temporary name and renames it: nobody reads half a file."""
    temporary = f"{path}.tmp"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    tf.io.gfile.rename(temporary, path, overwrite=True)
