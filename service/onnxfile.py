"""Reads what an ONNX file is made of, without the `onnx` package, which serving does not install.

Only the Protocol Buffers wire format is read (https://protobuf.dev/programming-guides/encoding/), and of ONNX's
messages only the fields that say which operators run, in which opset, and whether weights lie in other files; the
numbers are those of onnx.proto. Weights are skipped, not copied.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw numbers by themselves: with one of these a seed no longer means one picture."""

_MAX_DEPTH = 16  # graphs within graphs (If, Loop); exporters use two or three


@dataclass
class Contents:
    """Operators and the file's own functions as (domain, type), the default domain's being `""`; opsets by domain."""

    operators: set[tuple[str, str]] = field(default_factory=set)
    opsets: dict[str, int] = field(default_factory=dict)
    functions: set[tuple[str, str]] = field(default_factory=set)
    external: bool = False

    def faults(self, opset: int) -> list[str]:
        """What forbids to serve the file under a manifest that says this opset."""
        found = []
        if random := sorted(kind for domain, kind in self.operators if domain == "" and kind in RANDOM):
            found.append(f"draws random numbers by itself ({', '.join(random)}); randomness enters as an input")
        own = self.operators - self.functions
        foreign = sorted(f"{domain}.{kind}" for domain, kind in own if domain not in ("", "ai.onnx.ml"))
        if foreign:
            found.append(f"holds operators outside of ONNX ({', '.join(foreign)})")
        if self.external:
            found.append("keeps weights in other files")
        if self.opsets.get("") != opset:
            found.append(f"is of opset {self.opsets.get('')}, the manifest says {opset}")
        return found


def read_contents(path: Path) -> Contents:
    """The operators of a file, those within branches, loops and functions included.

    Raises:
        ValueError: not an ONNX file.
        OSError: unreadable.
    """
    contents = Contents()
    _model(mapped(path), contents)
    if not contents.opsets or not contents.operators:
        raise ValueError("holds no operators")
    return contents


def mapped(path: Path) -> memoryview:
    """A file's bytes, mapped.

    Raises:
        ValueError: it is empty.
        OSError: unreadable.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("is empty")
        # Not closed by hand: an error's traceback still holds views of it, and closing under those raises.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _model(view: memoryview, contents: Contents) -> None:
    for number, value in fields(view):
        if isinstance(value, int):
            continue
        if number == 7:  # graph
            _graph(value, contents, 0)
        elif number == 8:  # opset_import
            named = dict(fields(value))
            version = named.get(2, 0)
            domain = text_of(named.get(1))
            contents.opsets["" if domain == "ai.onnx" else domain] = version if isinstance(version, int) else 0
        elif number == 25:  # functions
            texts = {1: "", 10: ""}
            for inner, part in fields(value):
                if inner in texts:
                    texts[inner] = text_of(part)
                elif inner == 7 and not isinstance(part, int):
                    _node(part, contents, 0)
            contents.functions.add((texts[10], texts[1]))


def _graph(view: memoryview, contents: Contents, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("nests graphs too deep")
    for number, value in fields(view):
        if isinstance(value, int):
            continue
        if number == 1:
            _node(value, contents, depth)
        elif number == 5:
            _tensor(value, contents)


def _node(view: memoryview, contents: Contents, depth: int) -> None:
    kind = domain = ""
    for number, value in fields(view):
        if number == 4:
            kind = text_of(value)
        elif number == 7:
            domain = text_of(value)
        elif number == 5 and not isinstance(value, int):  # attribute
            for inner, part in fields(value):
                if inner in (6, 11) and not isinstance(part, int):
                    _graph(part, contents, depth + 1)
                elif inner in (5, 10) and not isinstance(part, int):
                    _tensor(part, contents)
    contents.operators.add(("" if domain == "ai.onnx" else domain, kind))


def _tensor(view: memoryview, contents: Contents) -> None:
    contents.external |= any(number == 14 and value == 1 for number, value in fields(view))


def text_of(value: "memoryview | int | None") -> str:
    return bytes(value).decode() if isinstance(value, memoryview) else ""


def fields(view: memoryview) -> Iterator[tuple[int, "memoryview | int"]]:
    """A message's fields: (number, varint or bytes); fixed-width ones are skipped."""
    at = 0
    while at < len(view):
        key, at = varint(view, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(view, at)
            yield number, value
        elif wire == 2:
            size, at = varint(view, at)
            if at + size > len(view):
                raise ValueError("ends in the middle of a field")
            yield number, view[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"is not ONNX: wire type {wire}")


def varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("is not ONNX: a number does not end")
