"""Latents as they travel: JSON arrays, base64 of little-endian float32, and NumPy's npy."""

import base64
import binascii
import difflib
import io
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.engine.latents import LATENT_MOST
from service.errors import InvalidRequest

Floats = npt.NDArray[np.float32]

NPY = b"\x93NUMPY"
_NUMBERS = "iuf"
_SHOWN = 60
_DEEPEST = 3


def top(where: str) -> str:
    """The body's field of a place such as `mix[0].latent`."""
    return where.partition("[")[0].partition(".")[0]


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown name."""
    near = difflib.get_close_matches(name[:_SHOWN].lower(), known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known) or 'none'}"


def base64_of(latents: npt.NDArray[np.floating]) -> str:
    """Base64 of little-endian float32, row by row."""
    return base64.b64encode(np.ascontiguousarray(latents, "<f4").tobytes()).decode("ascii")


def npy_of(latents: npt.NDArray[np.floating]) -> bytes:
    """An npy file of little-endian float32."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(latents, "<f4"), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def from_text(text: str, where: str) -> Floats:
    """Base64 of little-endian float32 (one flat row), or of an npy file (in its shape).

    Raises:
        InvalidRequest: neither; `where` begins the detail.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{where}: is no base64 of little-endian float32 or npy", field=top(where)) from None
    if data.startswith(NPY):
        return from_npy(data, where)
    if not data or len(data) % 4:
        raise InvalidRequest(f"{where}: {len(data)} bytes are no whole number of 32-bit floats", field=top(where))
    return finite(np.frombuffer(data, "<f4"), where)


def from_npy(data: bytes, where: str) -> Floats:
    """An npy file's numbers, in its shape. Nothing is allocated that the file does not hold.

    Raises:
        InvalidRequest: no npy, other types than numbers, or cut off.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = {
            (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
        }[version]  # fmt: skip
        shape, fortran, dtype = header(stream)
    except (ValueError, KeyError, EOFError, OSError, SyntaxError, TypeError):
        raise InvalidRequest(f"{where}: is no npy file that can be read", field=top(where)) from None
    if dtype.kind not in _NUMBERS or fortran or not 1 <= len(shape) <= 3:
        order = ", in Fortran's order" if fortran else ""
        detail = f"{where}: must be numbers in rows (C order) of 1 to 3 dimensions, not {dtype} {list(shape)}{order}"
        raise InvalidRequest(detail, field=top(where))
    count = math.prod(shape)
    if count < 1 or count * dtype.itemsize != len(data) - stream.tell():
        raise InvalidRequest(f"{where}: the npy file does not hold the {list(shape)} that it says", field=top(where))
    return finite(np.frombuffer(data, dtype, count, stream.tell()).reshape(shape), where)


def numbers_of(value: object, where: str) -> Floats | None:
    """Numbers in nested lists of one shape, up to three deep, or a NumPy array; None where it is something else.

    Raises:
        InvalidRequest: a number is not finite in float32.
    """
    if not isinstance(value, np.ndarray) and not _are_numbers(value, _DEEPEST):
        return None
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):  # of different lengths
        return None
    if array.dtype.kind not in _NUMBERS or not array.size:
        return None
    return finite(array, where)


def _are_numbers(value: object, depth: int) -> bool:
    """Lists in lists, and numbers in these: NumPy would make room for whatever else it finds, as wide as the widest."""
    if not isinstance(value, (list, tuple)) or not value or not depth:
        return False
    return all(type(one) in (int, float) or _are_numbers(one, depth - 1) for one in value)


def latent_of(value: object, where: str) -> Floats:
    """One latent: an array of numbers, one such for each layer, base64 text, or a NumPy array.

    Raises:
        InvalidRequest: none of them; field `where`.
    """
    if isinstance(value, str):
        given = from_text(value, where)
    else:
        numbers = numbers_of(value, where)
        if numbers is None:
            raise InvalidRequest(f"{where}: must be an array of numbers, or base64", field=top(where))
        given = numbers
    if given.ndim == 3 and len(given) == 1:  # an npy of one row
        given = given[0]
    if not 1 <= given.ndim <= 2:
        raise InvalidRequest(f"{where}: must be one latent, not {list(given.shape)}", field=top(where))
    return given


def finite(numbers: npt.NDArray[np.generic], where: str) -> Floats:
    """As float32.

    Raises:
        InvalidRequest: a number lies beyond `LATENT_MOST`, or is none.
    """
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(numbers, np.float32)
    if not (np.abs(rounded) <= LATENT_MOST).all():
        detail = f"{where}: holds a number that is not between -{LATENT_MOST:g} and {LATENT_MOST:g}"
        raise InvalidRequest(detail, field=top(where))
    return rounded
