"""A SavedModel run by TensorFlow's C library alone, as TF Serving runs it: no Python of TensorFlow.

    python -I tests/export/c_api.py REQUESTS ANSWERS

A program of its own, so that nothing can come from Python: it imports NumPy, and takes of the
packages tensorflow and tensorflow_text nothing but their shared libraries. Both files are JSON:

    {"library": PATH, "text_libraries": [PATH, ...], "folder": PATH,
     "requests": [[SIGNATURE, {INPUT: TENSOR}], ...]}
    {"answers": [{OUTPUT: TENSOR} or the message of an error, ...],
     "signatures": {SIGNATURE: {"inputs": {INPUT: [DTYPE, DIMS]}, "outputs": ...}},
     "ops": [NAME, ...], "text_ops": [NAME, ...], "modules": [NAME, ...]}

A TENSOR is `[dtype, dims, flat values]`; a string is written as Latin-1, a character for each byte.

The functions are declared in tensorflow/c/*.h, which the tensorflow package has in include/; the
numbers of fields are those of meta_graph.proto, tensor_shape.proto, types.proto and op_def.proto.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple

import numpy as np

NUMBERS = {"float32": 1, "int32": 3, "string": 7}  # of DataType
DTYPES = {number: name for name, number in NUMBERS.items()}
TSTRING_SIZE = 24  # bytes of a TF_TString
Tensor = tuple[str, list[int], list[Any]]  # dtype, dims, flat values; strings are bytes
Request = tuple[str, Mapping[str, np.ndarray]]  # signature, inputs


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = (("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p))


class Output(ctypes.Structure):
    """TF_Output: an operation and which of its outputs."""

    _fields_ = (("operation", c_void_p), ("index", c_int))


class Place(NamedTuple):
    """TensorInfo: where an input or output of a signature is in the graph."""

    name: str
    dtype: str
    dims: list[int]  # -1 where any will do


BUFFER, OUTPUTS, TENSORS = POINTER(Buffer), POINTER(Output), POINTER(c_void_p)
FEED = (OUTPUTS, TENSORS, c_int)  # places in the graph, their tensors, how many
# Result and arguments.
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_NewStatus": (c_void_p, ()),
    "TF_GetCode": (c_int, (c_void_p,)),
    "TF_Message": (c_char_p, (c_void_p,)),
    "TF_DeleteStatus": (None, (c_void_p,)),
    "TF_NewBuffer": (BUFFER, ()),
    "TF_DeleteBuffer": (None, (BUFFER,)),
    "TF_GetAllOpList": (BUFFER, ()),
    "TF_LoadLibrary": (c_void_p, (c_char_p, c_void_p)),
    "TF_NewGraph": (c_void_p, ()),
    "TF_NewSessionOptions": (c_void_p, ()),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        (c_void_p, BUFFER, c_char_p, POINTER(c_char_p), c_int, c_void_p, BUFFER, c_void_p),
    ),
    "TF_GraphOperationByName": (c_void_p, (c_void_p, c_char_p)),
    "TF_SessionRun": (
        None,
        (c_void_p, BUFFER, *FEED, *FEED, TENSORS, c_int, BUFFER, c_void_p),
    ),
    "TF_AllocateTensor": (c_void_p, (c_int, POINTER(c_int64), c_int, c_size_t)),
    "TF_DeleteTensor": (None, (c_void_p,)),
    "TF_TensorData": (c_void_p, (c_void_p,)),
    "TF_TensorByteSize": (c_size_t, (c_void_p,)),
    "TF_TensorType": (c_int, (c_void_p,)),
    "TF_NumDims": (c_int, (c_void_p,)),
    "TF_Dim": (c_int64, (c_void_p, c_int)),
    "TF_StringInit": (None, (c_void_p,)),
    "TF_StringCopy": (None, (c_void_p, c_char_p, c_size_t)),
    "TF_StringGetDataPointer": (c_void_p, (c_void_p,)),
    "TF_StringGetSize": (c_size_t, (c_void_p,)),
    "TF_StringDealloc": (None, (c_void_p,)),
}


def open_library(path: str) -> ctypes.CDLL:
    """TensorFlow's C API."""
    library = ctypes.CDLL(path, ctypes.RTLD_GLOBAL)  # the libraries of ops look here for symbols
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@contextlib.contextmanager
def checked(library: ctypes.CDLL) -> Iterator[int]:
    """A status for one call; raises RuntimeError where it failed."""
    status = library.TF_NewStatus()
    try:
        yield status
        if library.TF_GetCode(status):
            raise RuntimeError(library.TF_Message(status).decode())
    finally:
        library.TF_DeleteStatus(status)


def registered_ops(library: ctypes.CDLL) -> set[str]:
    """The names of all ops."""
    ops = library.TF_GetAllOpList()
    return {fields(op)[1][0].decode() for op in fields(taken(library, ops))[1]}


def taken(library: ctypes.CDLL, buffer: Any) -> bytes:
    """The content of a buffer, which is deleted."""
    content = ctypes.string_at(buffer.contents.data, buffer.contents.length)
    library.TF_DeleteBuffer(buffer)
    return content


# ----------------------------------------------------------------------------------------- messages


def fields(message: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer by number: integers, and bytes of all others."""
    found: dict[int, list[Any]] = collections.defaultdict(list)
    place = 0
    while place < len(message):
        key, place = varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = varint(message, place)
            found[key >> 3].append(value)
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            size, place = varint(message, place)
        found[key >> 3].append(message[place : place + size])
        place += size
    return found


def varint(message: bytes, place: int) -> tuple[int, int]:
    """An integer, and the place behind it."""
    value = shift = 0
    while True:
        value |= (message[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if message[place - 1] < 0x80:
            return value, place


def as_map(entries: Sequence[bytes]) -> dict[str, dict[int, list[Any]]]:
    """A map from strings to messages."""
    pairs = [fields(entry) for entry in entries]
    return {pair[1][0].decode(): fields(pair[2][0]) for pair in pairs}


def place_of(tensor_info: Mapping[int, list[Any]]) -> Place:
    """From TensorInfo: name 1, dtype 2, tensor_shape 3 with dim 2 with size 1."""
    sizes = [fields(dim)[1][0] for dim in fields(tensor_info[3][0])[2]]
    dims = [-1 if size >> 63 else size for size in sizes]
    return Place(tensor_info[1][0].decode(), DTYPES[tensor_info[2][0]], dims)


def signatures_of(meta_graph: bytes) -> dict[str, dict[str, dict[str, Place]]]:
    """From MetaGraphDef: signature_def 5 with inputs 1 and outputs 2."""
    return {
        name: {
            kind: {key: place_of(info) for key, info in as_map(signature[number]).items()}
            for kind, number in (("inputs", 1), ("outputs", 2))
        }
        for name, signature in as_map(fields(meta_graph)[5]).items()
        if not name.startswith("__")  # of initialisation
    }


# ------------------------------------------------------------------------------------------ tensors


def to_tensor(library: ctypes.CDLL, tensor: Tensor) -> int:
    """A TF_Tensor, for `delete_input`."""
    dtype, dims, values = tensor
    array = np.array([] if dtype == "string" else values, None if dtype == "string" else dtype)
    size = len(values) * TSTRING_SIZE if dtype == "string" else array.nbytes
    shape = (c_int64 * len(dims))(*dims)
    handle = library.TF_AllocateTensor(NUMBERS[dtype], shape, len(dims), size)
    data = library.TF_TensorData(handle)
    if dtype != "string":
        ctypes.memmove(data, array.ctypes.data, size)
        return handle
    for number, value in enumerate(values):
        library.TF_StringInit(data + number * TSTRING_SIZE)
        library.TF_StringCopy(data + number * TSTRING_SIZE, value, len(value))
    return handle


def delete_input(library: ctypes.CDLL, handle: int) -> None:
    """Frees what `to_tensor` made, long strings included."""
    if library.TF_TensorType(handle) == NUMBERS["string"]:
        data = library.TF_TensorData(handle)
        for place in range(0, library.TF_TensorByteSize(handle), TSTRING_SIZE):
            library.TF_StringDealloc(data + place)
    library.TF_DeleteTensor(handle)


def from_tensor(library: ctypes.CDLL, handle: int) -> Tensor:
    """The content of a TF_Tensor."""
    dtype = DTYPES[library.TF_TensorType(handle)]
    dims = [library.TF_Dim(handle, axis) for axis in range(library.TF_NumDims(handle))]
    data, count = library.TF_TensorData(handle), math.prod(dims)
    if dtype != "string":
        content = ctypes.string_at(data, library.TF_TensorByteSize(handle)) if count else b""
        return dtype, dims, np.frombuffer(content, dtype).tolist()
    places = [data + number * TSTRING_SIZE for number in range(count)]
    return (
        dtype,
        dims,
        [
            ctypes.string_at(
                library.TF_StringGetDataPointer(place), library.TF_StringGetSize(place)
            )
            for place in places
        ],
    )


# ------------------------------------------------------------------------------------- the session


class Session:
    """A loaded SavedModel."""

    def __init__(self, library: ctypes.CDLL, folder: str) -> None:
        self.library, self.graph = library, library.TF_NewGraph()
        meta_graph = library.TF_NewBuffer()
        tags = (c_char_p * 1)(b"serve")
        with checked(library) as status:
            self.session = library.TF_LoadSessionFromSavedModel(
                library.TF_NewSessionOptions(),
                None,
                folder.encode(),
                tags,
                len(tags),
                self.graph,
                meta_graph,
                status,
            )
        self.signatures = signatures_of(taken(library, meta_graph))

    def run(self, signature: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of a signature; raises RuntimeError as TF Serving would answer an error."""
        library = self.library
        places = self.signatures[signature]
        wanted = list(places["outputs"].values())
        given = [to_tensor(library, tensor) for tensor in inputs.values()]
        found = (c_void_p * len(wanted))()
        try:
            with checked(library) as status:
                library.TF_SessionRun(
                    self.session,
                    None,
                    self.outputs([places["inputs"][name] for name in inputs]),
                    (c_void_p * len(given))(*given),
                    len(given),
                    self.outputs(wanted),
                    found,
                    len(wanted),
                    None,
                    0,
                    None,
                    status,
                )
            tensors = [from_tensor(library, handle) for handle in found]
        finally:
            for handle in given:
                delete_input(library, handle)
        for handle in found:
            library.TF_DeleteTensor(handle)
        return dict(zip(places["outputs"], tensors, strict=True))

    def outputs(self, places: Sequence[Place]) -> Any:
        """An array of TF_Output."""
        handles = (Output * len(places))()
        for handle, place in zip(handles, places, strict=True):
            name, _, index = place.name.partition(":")
            handle.operation = self.library.TF_GraphOperationByName(self.graph, name.encode())
            handle.index = int(index)
        return handles


def coded(tensors: Mapping[str, Tensor], recode: Any) -> dict[str, Tensor]:
    """Tensors with their strings from text to bytes or back."""
    return {
        name: (dtype, dims, list(map(recode, values)) if dtype == "string" else values)
        for name, (dtype, dims, values) in tensors.items()
    }


def answer(session: Session, signature: str, inputs: Mapping[str, Tensor]) -> Any:
    """The outputs, or the message of an error, for JSON."""
    try:
        outputs = session.run(signature, coded(inputs, lambda text: text.encode("latin-1")))
    except RuntimeError as error:
        return str(error)
    return coded(outputs, lambda text: text.decode("latin-1"))


def described(session: Session) -> dict[str, Any]:
    """Type and dims of all inputs and outputs."""
    return {
        name: {
            kind: {key: [place.dtype, place.dims] for key, place in places.items()}
            for kind, places in signature.items()
        }
        for name, signature in session.signatures.items()
    }


def main(requests_file: str, answers_file: str) -> None:
    """Answers all requests."""
    with open(requests_file, encoding="utf-8") as file:
        requests = json.load(file)
    library = open_library(requests["library"])
    ops = registered_ops(library)
    for path in requests["text_libraries"]:
        with checked(library) as status:
            library.TF_LoadLibrary(path.encode(), status)
    session = Session(library, requests["folder"])
    told = {
        "answers": [answer(session, *request) for request in requests["requests"]],
        "signatures": described(session),
        "ops": sorted(ops),
        "text_ops": sorted(registered_ops(library) - ops),
        "modules": sorted(sys.modules),
    }
    with open(answers_file, "w", encoding="utf-8") as file:
        json.dump(told, file)


# --------------------------------------------------------------------------------------- the tests


def ask(version: pathlib.Path, requests: Sequence[Request], folder: pathlib.Path) -> dict[str, Any]:
    """Runs this program, with files in `folder`.

    Args:
        version: folder of a SavedModel.
        requests: to its signatures.
        folder: for the two files.

    Returns:
        What the program tells, and `answers` have NumPy arrays.
    """
    told = {
        "library": next(str(path) for path in package("tensorflow").glob("libtensorflow_cc.*")),
        "text_libraries": sorted(map(str, package("tensorflow_text").glob("python/ops/*.so"))),
        "folder": str(version),
        "requests": [(signature, from_arrays(inputs)) for signature, inputs in requests],
    }
    files = [folder / "requests.json", folder / "answers.json"]
    files[0].write_text(json.dumps(told), "utf-8")
    command = [sys.executable, "-I", __file__, *map(str, files)]
    subprocess.run(command, check=True, cwd=folder)
    told = json.loads(files[1].read_text("utf-8"))
    answers = [one if isinstance(one, str) else to_arrays(one) for one in told["answers"]]
    return told | {"answers": answers}


def package(name: str) -> pathlib.Path:
    """The folder of an installed package, which is not imported."""
    specification = importlib.util.find_spec(name)
    assert specification is not None
    assert specification.origin is not None
    return pathlib.Path(specification.origin).parent


def from_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as JSON has them; those of strings hold bytes."""
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        dtype = "string" if array.dtype == object else array.dtype.name
        tensors[name] = (dtype, list(array.shape), array.ravel().tolist())
    return coded(tensors, lambda value: value.decode("latin-1"))


def to_arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The arrays that `from_arrays` takes, as TensorFlow's `numpy()` gives them."""
    return {
        name: np.array(values, object if dtype == "string" else dtype).reshape(dims)
        for name, (dtype, dims, values) in coded(tensors, lambda s: s.encode("latin-1")).items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
