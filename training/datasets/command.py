"""`python -m training data`: fetch a public set, or look through one's own images and prepare them."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from training.datasets import backbone, prepared
from training.datasets.degrade import DEGRADATIONS
from training.datasets.errors import DataError
from training.datasets.imageset import ROOT, load
from training.datasets.packages import Run, run_client
from training.datasets.public import PUBLIC, prepare
from training.datasets.report import DataReport

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    out = argparse.ArgumentParser(
        prog="python -m training data",
        description="Fetch and prepare a public set by name, or check (and with --out prepare) your own images.",
    )
    out.add_argument("source", nargs="?", help=f"{', '.join(PUBLIC)}, or a folder, a zip or IDX files of your own")
    out.add_argument("--list", action="store_true", help="list the public sets and what is prepared")
    out.add_argument("--root", type=Path, default=ROOT, metavar="DIR", help="data folder (default: %(default)s)")
    out.add_argument("--from", dest="given", type=Path, metavar="DIR", help="folder with package files fetched by hand")
    out.add_argument("--again", action="store_true", help="prepare a set even though it is there, in its place")
    own = out.add_argument_group("your own images")
    own.add_argument("--out", metavar="NAME", help="prepare them as ROOT/NAME, to be loaded by that name")
    own.add_argument("--size", type=int, default=64, metavar="PX", help="side of the images (default: %(default)s)")
    own.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 grey, 3 colour (default: %(default)s)")
    own.add_argument("--strict", action="store_true", help="a file that needs a repair or is unusable is an error")
    own.add_argument(
        "--test-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="share held out, by content (default: %(default)s)",
    )
    own.add_argument("--license", default="unknown", help="recorded with --out and shown on the model's card")
    return out


def main(argv: Sequence[str], run: Run = run_client) -> int:
    """Run the command.

    Args:
        argv: the arguments after `data`.
        run: runs package clients; tests hand in their own.

    Returns:
        The exit status: 0 done, 1 a DataError (its text is on stderr), 2 wrong usage, 130 interrupted.
    """
    arguments = parser()
    try:
        given = arguments.parse_args(list(argv))
    except SystemExit as leave:
        return int(leave.code or 0)
    try:
        if given.list:
            print(listing(given.root))
        elif given.source is None:
            arguments.print_usage(sys.stderr)
            print("error: name a set or a path, or use --list", file=sys.stderr)
            return 2
        elif given.source in PUBLIC:
            _public(given, run)
        elif given.source == backbone.NAME:
            print(
                f"{backbone.prepare(given.root, given.given, run)}: VGG16 and heads for perceptual losses and LPIPS-HED"
            )
        else:
            _own(given)
    except DataError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def listing(root: Path) -> str:
    """One line per public set, then one per other prepared set: licence, counts, size, whether it is prepared."""
    rows = [("name", "licence", "train", "test", "size", "classes", "prepared")]
    for public in PUBLIC.values():
        shape = f"{public.size}x{public.size}x{public.channels}"
        here = "yes" if prepared.is_prepared(root / public.name) else "no"
        counts = (f"{public.counts[0]:,}", f"{public.counts[1]:,}")
        rows.append((public.name, public.license, *counts, shape, str(len(public.classes) or "-"), here))
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if prepared.is_prepared(folder) and folder.name not in PUBLIC and not folder.name.startswith("."):
            meta = prepared.read_meta(folder)
            shape = f"{meta['size']}x{meta['size']}x{meta['channels']}"
            counts = (f"{meta['counts']['train']:,}", f"{meta['counts']['test']:,}")
            rows.append((folder.name, meta["license"], *counts, shape, str(len(meta["classes"]) or "-"), "yes"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", f"weights for perceptual losses: {backbone.NAME}", "", "degradations, which make pairs on line:"]
    lines += [f"  {kind.name:<14}  {kind.about}" for kind in DEGRADATIONS.values() if not kind.test_only]
    return "\n".join(lines)


def _public(given: argparse.Namespace, run: Run) -> None:
    if given.out or given.strict:
        raise DataError(f"--out and --strict are for your own images; {given.source} is a public set")
    folder = prepare(given.source, given.root, given.given, run, again=given.again)
    meta = prepared.read_meta(folder)
    print(
        f"{folder}: {meta['counts']['train']:,} train and {meta['counts']['test']:,} test images, "
        f"{meta['size']} px, {meta['channels']} channel(s), licence {meta['license']}"
    )


def _own(given: argparse.Namespace) -> None:
    if given.out is not None:
        if not NAME.fullmatch(given.out) or given.out in PUBLIC:
            raise DataError(
                f"--out {given.out!r}: must be lower-case letters, digits, '.', '_' or '-', and not a public set's name"
            )
        if os.path.lexists(given.root / given.out) and not prepared.is_prepared(given.root / given.out):
            raise DataError(f"--out {given.out!r}: {given.root / given.out} exists and is not a prepared set")
        if prepared.is_prepared(given.root / given.out) and not given.again:
            raise DataError(f"--out {given.out!r}: there is such a set already; --again replaces it")
    images = load(
        given.source, size=given.size, channels=given.channels, root=given.root, strict=given.strict,
        test_fraction=given.test_fraction, report=_print,
    )  # fmt: skip
    if given.out is not None:
        arrays: dict[str, NDArray[Any]] = {"train_images": images.train, "test_images": images.test}
        if images.train_labels is not None and images.test_labels is not None:
            arrays |= {"train_labels": images.train_labels, "test_labels": images.test_labels}
        meta = {
            "name": given.out,
            "classes": list(images.classes),
            "license": given.license,
            "source": images.source,
            "packages": [],
        }
        prepared.write(given.root / given.out, arrays, meta)
        print(f"{given.root / given.out}: prepared at {given.size} px, {given.channels} channel(s)")


def _print(report: DataReport) -> None:
    print(report.text())
