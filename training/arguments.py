"""Types of command-line arguments, which say at once what is wrong with one."""

import argparse
import math
import re
from collections.abc import Callable


def count(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number of `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"is {text!r}, must be a whole number from {least} to {most}")
        return value

    return read


def number(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"is {text!r}, must be a number of at least 0")
    return value


def device(text: str) -> str:
    """`cpu`, `cuda` or one of several, `cuda:1`."""
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"is {text!r}, must be cpu, cuda or cuda:0 and so on")
    return text
