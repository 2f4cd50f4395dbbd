"""An ONNX file's nodes and small constants, read without the `onnx` package: what the arithmetic of tiles needs.

Like `onnxfile`, this reads the Protocol Buffers wire format; field numbers are those of onnx.proto. Large weights are
skipped: of them only the dimensions are kept.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.onnxfile import fields, mapped, text_of, varint

KEPT_VALUES = 64
"""Values of a constant that are kept: pads, scales, axes and shapes have fewer."""

_DTYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 6: np.dtype("<i4"), 7: np.dtype("<i8"), 11: np.dtype("<f8")}


@dataclass(frozen=True)
class Constant:
    """A tensor that the file holds. `values` is flat, None where it is long or of a type that no shape has."""

    dims: tuple[int, ...]
    values: npt.NDArray[np.float64] | None = None

    def ints(self) -> list[int] | None:
        """The values as whole numbers."""
        return None if self.values is None else [int(value) for value in self.values]


@dataclass(frozen=True)
class Node:
    """One operator. `domain` is `""` for ONNX's own. Attributes by kind."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ints: dict[str, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    tensor: Constant | None = None

    def int_of(self, name: str, default: int) -> int:
        """A whole-number attribute."""
        return self.ints[name][0] if self.ints.get(name) else default


@dataclass
class Graph:
    """A file's main graph, nodes in an order in which each comes after what it reads."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Of the tensors that the file says it of; None for lengths that it leaves open."""


def read_graph(path: Path) -> Graph:
    """The main graph of a file.

    Raises:
        ValueError: not an ONNX file.
        OSError: unreadable.
    """
    graph = Graph()
    for number, value in fields(mapped(path)):
        if number == 7 and not isinstance(value, int):
            _read(value, graph)
    return graph


def _read(view: memoryview, graph: Graph) -> None:
    for number, value in fields(view):
        if isinstance(value, int):
            continue
        if number == 1:
            node = _node(value)
            graph.nodes.append(node)
            if node.op == "Constant" and node.tensor is not None:
                graph.constants[node.outputs[0]] = node.tensor
        elif number == 5:
            name, constant = _tensor(value)
            graph.constants[name] = constant
        elif number in (11, 12, 13):
            name, shape = _shaped(value)
            if shape is not None:
                graph.shapes[name] = shape


def _node(view: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 2: [], 4: [], 7: []}
    ints: dict[str, tuple[int, ...]] = {}
    words: dict[str, str] = {}
    tensor: Constant | None = None
    for number, value in fields(view):
        if number in texts:
            texts[number].append(text_of(value))
        elif number == 5 and not isinstance(value, int):
            name, numbers, word, found = _attribute(value)
            if numbers:
                ints[name] = numbers
            if word is not None:
                words[name] = word
            tensor = found or tensor
    domain = "".join(texts[7])
    op = "".join(texts[4])
    if op == "Constant" and tensor is None:  # given as `value_int` or `value_ints`
        numbers = next(iter(ints.values()), ())
        tensor = Constant((len(numbers),), np.array(numbers, np.float64)) if numbers else None
    return Node(op, "" if domain == "ai.onnx" else domain, tuple(texts[1]), tuple(texts[2]), ints, words, tensor)


def _shaped(view: memoryview) -> tuple[str, tuple[int | None, ...] | None]:
    """A tensor's name and shape, None where it has none or is none."""
    name, shape = "", None
    for number, value in fields(view):
        if number == 1:
            name = text_of(value)
        elif number == 2 and not isinstance(value, int):
            tensor = _within(value, 1)
            dims = None if tensor is None else _within(tensor, 2)
            if dims is not None:
                shape = tuple(_length(one) for key, one in fields(dims) if key == 1 and not isinstance(one, int))
    return name, shape


def _within(view: memoryview, wanted: int) -> memoryview | None:
    return next((value for number, value in fields(view) if number == wanted and not isinstance(value, int)), None)


def _length(view: memoryview) -> int | None:
    return next((value for number, value in fields(view) if number == 1 and isinstance(value, int)), None)


def _attribute(view: memoryview) -> tuple[str, tuple[int, ...], str | None, Constant | None]:
    name, word, tensor = "", None, None
    numbers: list[int] = []
    for number, value in fields(view):
        if number == 1:
            name = text_of(value)
        elif number in (3, 8):
            numbers += _integers(value)
        elif number == 4 and not isinstance(value, int):
            word = bytes(value).decode("utf-8", "replace")
        elif number == 5 and not isinstance(value, int):
            tensor = _tensor(value)[1]
    return name, tuple(numbers), word, tensor


def _tensor(view: memoryview) -> tuple[str, Constant]:
    dims: list[int] = []
    kind, name = 0, ""
    raw: memoryview | None = None
    numbers: list[float] = []
    for number, value in fields(view):
        if number == 1:
            dims += _integers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = text_of(value)
        elif number == 9 and not isinstance(value, int):
            raw = value
        elif number in (5, 7) and (isinstance(value, int) or len(value) <= 10 * KEPT_VALUES):
            numbers += _integers(value)
        elif number == 4 and not isinstance(value, int) and len(value) <= 4 * KEPT_VALUES:
            numbers += struct.unpack(f"<{len(value) // 4}f", value[: len(value) // 4 * 4])
    count = int(np.prod(dims, dtype=np.float64)) if dims else 1
    values: npt.NDArray[np.float64] | None = None
    if count <= KEPT_VALUES:
        if raw is not None and kind in _DTYPES and len(raw) == count * _DTYPES[kind].itemsize:
            values = np.frombuffer(raw, _DTYPES[kind]).astype(np.float64)
        elif len(numbers) == count:
            values = np.array(numbers, np.float64)
    return name, Constant(tuple(dims), values)


def _integers(value: "memoryview | int") -> list[int]:
    """One number, or a packed row of them; signed."""
    return [number - (1 << 64) if number >= 1 << 63 else number for number in _unpacked(value)]


def _unpacked(value: "memoryview | int") -> Iterator[int]:
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = varint(value, at)
        yield number
