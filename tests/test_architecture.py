"""What a reviewer would otherwise have to watch: layers, sizes, and calls that must not appear.

Everything is read from the source with `ast`; nothing of the package is imported.
"""

from __future__ import annotations

import ast
import graphlib
import pathlib
import re
import sys
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "bert_tf"

# Imports point down, or to a module of the same layer. A new module gets its line here.
LAYERS = {
    "config": 0,
    "text_normalization": 0,
    "tokenization": 0,
    "unicode_table": 0,
    "answer_metrics": 1,
    "checkpoints": 1,
    "conversion": 1,
    "extension": 1,
    "vocabulary": 1,
    "distribution": 1,
    "embedding": 1,
    "encoder": 1,
    "heads": 1,
    "hugging_face": 1,
    "kernels": 1,
    "layouts": 1,
    "metrics": 1,
    "optimization": 1,
    "rendezvous": 1,
    "spans": 1,
    "tpu": 1,
    "weights": 1,
    "data": 2,
    "tasks": 3,
    "command_line": 4,
    "distillation": 4,
    "export": 4,
    "masked_words": 4,
    "prediction": 4,
    "preflight": 4,
    "restore": 4,
    "run_folder": 4,
    "runner": 4,
    "teacher": 4,
    "training": 4,
    "bert_tf": 5,  # bert_tf/__init__.py: the names that users import
}
MAX_LINES = 450

# Third-party modules by the distribution of pyproject.toml that brings them.
MODULES = {
    "absl-py": "absl",
    "ai-edge-litert": "ai_edge_litert",
    "apache-beam": "apache_beam",
    "grpcio": "grpc",
    "matplotlib": "matplotlib",
    "ml_collections": "ml_collections",
    "numpy": "numpy",
    "onnx": "onnx",
    "safetensors": "safetensors",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "sentencex": "sentencex",
    "tensorflow": "tensorflow",
    "tensorflow-datasets": "tensorflow_datasets",
    "tensorflow-serving-api": "tensorflow_serving",
    "tensorflow-text": "tensorflow_text",
    "tf_keras": "tf_keras",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
    "protobuf": "google",  # comes with every build of TensorFlow, whose files are its messages
}

# Code hidden in data, in strings or behind the graph: unsafe to load, or lost in a SavedModel.
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "import_module",
    "py_function",
    "numpy_function",
    "py_func",
    "Lambda",
}
ALLOWED_COMPILE = {"client", "re"}  # `re.compile` and XLA's share their name with the builtin
FORBIDDEN_IMPORTS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "importlib"}
# Keras 3 under two names; the package uses `tf_keras`.
KERAS_3_ATTRIBUTES = ("tf.keras", "tensorflow.keras")


def _python_files(folder: str) -> list[pathlib.Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def _name(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _tree(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _module(path: pathlib.Path) -> str:
    """The dotted name of a file: bert_tf/data/__init__.py is bert_tf.data."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, `from a import b` as a.b; relative ones as `.`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _module_of(name: str) -> str:
    """Cuts bert_tf.a.symbol down to the module bert_tf.a that it is found in."""
    while "." in name:
        path = ROOT.joinpath(*name.split("."))
        listed = name.removeprefix("bert_tf.") in LAYERS
        if listed or path.is_dir() or path.with_suffix(".py").exists():
            return name
        name = name.rpartition(".")[0]
    return name


def _layer_name(module: str) -> str:
    """Key of LAYERS: bert_tf.data.batches is of `data`, bert_tf itself of `bert_tf`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _package_imports(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of this package."""
    for line, name in _imports(_tree(path)):
        if name.split(".")[0] == "bert_tf":
            yield line, _module_of(name)


def _third_party(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of every import from outside the project and Python."""
    for line, name in _imports(_tree(path)):
        top = name.split(".")[0]
        if top and top not in sys.stdlib_module_names and top != "bert_tf":
            yield line, top


def _problems(source: str) -> list[str]:
    """What the source may not contain, as `line: what`."""
    found = []
    tree = ast.parse(source)
    for line, name in _imports(tree):
        top = name.split(".")[0]
        if top in FORBIDDEN_IMPORTS and name not in ("importlib.metadata", "importlib.resources"):
            found.append(f"{line}: imports {name}")
        if top == "keras" or name.startswith("tensorflow.keras"):
            found.append(f"{line}: imports {name}, which is Keras 3; use tf_keras")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node.func) in FORBIDDEN_CALLS:
            found.append(f"{node.lineno}: calls {_called(node.func)}")
        if _is_pickle_switch(node):
            found.append(f"{node.lineno}: allow_pickle")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in KERAS_3_ATTRIBUTES:
            found.append(f"{node.lineno}: tf.keras is Keras 3; use tf_keras")
    return found


def _is_pickle_switch(node: ast.AST) -> bool:
    """Whether this is `allow_pickle=` anything but False."""
    return (
        isinstance(node, ast.keyword)
        and node.arg == "allow_pickle"
        and ast.unparse(node.value) != "False"
    )


def _called(function: ast.expr) -> str:
    """The last name of what is called; none for re.compile."""
    if isinstance(function, ast.Name):
        return function.id
    if not isinstance(function, ast.Attribute):
        return ""
    owner = function.value
    if function.attr == "compile" and isinstance(owner, ast.Name) and owner.id in ALLOWED_COMPILE:
        return ""
    return function.attr


def test_every_module_has_a_layer() -> None:
    unlisted = {_name(p) for p in _python_files("bert_tf") if _layer_name(_module(p)) not in LAYERS}
    assert not unlisted, f"give these a line in LAYERS of {_name(pathlib.Path(__file__))}"


def test_readme_lists_every_module_and_script() -> None:
    listed = re.findall(
        r"`([^`]+)`", (ROOT / "README.md").read_text("utf-8").split("## The source")[1]
    )
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    files += [pathlib.Path(path.name) for path in (ROOT / "scripts").glob("*.py")]
    unlisted = {
        str(path)
        for path in files
        if path.name != "__init__.py" and not any(path.match(pattern) for pattern in listed)
    }
    assert not unlisted, "give these a line in the README"


def test_imports_point_down() -> None:
    wrong = []
    for path in _python_files("bert_tf"):
        own = _layer_name(_module(path))
        for line, module in _package_imports(path):
            other = _layer_name(module)
            if LAYERS.get(other, 0) > LAYERS.get(own, 0):
                wrong.append(f"{_name(path)}:{line} {own} imports {other}, which is above it")
    assert not wrong


def test_imports_have_no_cycle() -> None:
    graph = {}
    for path in _python_files("bert_tf"):
        own = _module(path)
        # A package's __init__ gathers the names of its own modules: those do not import it back.
        graph[own] = {module for _, module in _package_imports(path)} - {own}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("folder", ["bert_tf", "scripts", "configs"])
def test_imports_are_absolute(folder: str) -> None:
    wrong = [
        f"{_name(path)}:{line} {name}"
        for path in _python_files(folder)
        for line, name in _imports(_tree(path))
        if name.startswith(".")
    ]
    assert not wrong


@pytest.mark.parametrize("folder", ["bert_tf", "scripts", "configs"])
def test_third_party_imports_are_declared(folder: str) -> None:
    """Scripts and recipes so import nothing of the project but the package itself.

    scripts/peers/ and scripts/benchmark_peers/ compare with other libraries and have requirements
    of their own; the TPU compiler lives in its own environment, too (preflight/environment.py).
    scripts/benchmark.py stands on the modules of benchmark_peers/, which workers import as well.
    """
    own = {path.stem for path in _python_files("scripts/benchmark_peers")}
    elsewhere = ("scripts/peers/", "scripts/benchmark_peers/", "bert_tf/preflight/compiler.py")
    wrong = [
        f"{_name(path)}:{line} {top}"
        for path in _python_files(folder)
        if not _name(path).startswith(elsewhere)
        for line, top in _third_party(path)
        if top not in MODULES.values()
        and not (_name(path) == "scripts/benchmark.py" and top in own)
    ]
    assert not wrong, "declare it in pyproject.toml and in MODULES, or do without"


def test_declared_modules_are_in_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = {name.lower() for name in re.findall(r'"([\w-]+)(?:\[[\w-]+\])?[=<>]=', text)}
    assert {name.lower() for name in MODULES} - {"protobuf"} <= declared


def test_requirements_pin_every_hard_dependency() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    hard = set(re.findall(r'^ *"([\w-]+)>=', block, re.MULTILINE))
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([\w-]+)==", pins, re.MULTILINE))
    assert hard
    assert not [name for name in hard if name.startswith("tensorflow") or name == "tf_keras"]
    assert pinned == hard | {"tensorflow", "tensorflow-text", "tf_keras"}


@pytest.mark.parametrize("folder", ["bert_tf", "scripts"])
def test_files_are_short(folder: str) -> None:
    lengths = {
        _name(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in _python_files(folder)
    }
    too_long = {name: length for name, length in lengths.items() if length > MAX_LINES}
    assert not too_long, f"split these: the limit is {MAX_LINES} lines"


def test_nothing_forbidden_in_the_package() -> None:
    found = [
        f"{_name(path)}:{problem}"
        for path in _python_files("bert_tf")
        for problem in _problems(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from importlib import import_module",
        "import keras",
        "from tensorflow import keras",
        "from tensorflow.keras import layers",
        "x = tf.keras.layers.Dense(1)",
        "eval('1')",
        "tf.py_function(f, [], tf.int32)",
        "keras.layers.Lambda(f)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "compile('1', 'x', 'eval')",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert _problems(source)


@pytest.mark.parametrize(
    "source",
    ["import tf_keras as keras", "re.compile('a')", "np.load(path, allow_pickle=False)"],
)
def test_the_search_passes(source: str) -> None:
    assert not _problems(source)


def test_layers_name_modules_not_their_symbols() -> None:
    assert _module_of("bert_tf.config.BertConfig") == "bert_tf.config"
    assert _module_of("bert_tf.kernels") == "bert_tf.kernels"
    assert _module_of("bert_tf.SYMBOL") == "bert_tf"
    assert _layer_name("bert_tf.data.text") == "data"
    assert _module(PACKAGE / "data" / "__init__.py") == "bert_tf.data"
