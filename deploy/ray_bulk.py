"""Very many pictures at once, by all cores of a Ray cluster: a range of seeds becomes shards, each a tar file.

    python -m deploy.ray_bulk --model faces-32 --seeds 0:100000 --out /shared/faces --address auto

`faces-32@5-0000000000-0000001000.tar` holds `0000000000.png`, `0000000000.json` and so on, as WebDataset reads.
A shard is written under another name and renamed when it is whole, so that what is there is whole. Run again after a
crash, only what is missing is drawn; a node that is lost costs the shards that it was at, which others draw again.
`--out` must be one folder for all nodes.
"""

import argparse
import asyncio
import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.api.app import engine_of
from service.errors import GanymedeError, ModelAsleep
from service.imaging import Provenance, encode
from service.settings import Settings

if TYPE_CHECKING:
    from service.engine.engine import Engine

MOST_SEED = 2**32
AT_ONCE = 32
"""Images in one request to the engine, which splits and joins them as its lanes want."""


@dataclass(frozen=True)
class Shard:
    """Seeds `first` up to and without `end`, of one version of a model (`name@version`)."""

    model: str
    first: int
    end: int

    @property
    def name(self) -> str:
        """The file's. Another model, version or size of shards has other names: nothing is taken for what it is not."""
        return f"{self.model}-{self.first:010}-{self.end:010}.tar"


def shards_of(model: str, first: int, end: int, size: int) -> list[Shard]:
    """The range [first, end) in shards of `size` seeds, the last one with what is left.

    Raises:
        ValueError: no range of seeds, or a size below 1.
    """
    if not 0 <= first < end <= MOST_SEED or size < 1:
        raise ValueError(f"{first}:{end} in shards of {size} is no range of seeds within 0:{MOST_SEED}")
    return [Shard(model, at, min(at + size, end)) for at in range(first, end, size)]


def missing(shards: Sequence[Shard], out: Path) -> list[Shard]:
    """Those that are not in `out` yet."""
    there = {path.name for path in out.iterdir()}
    return [shard for shard in shards if shard.name not in there]


async def members(engine: "Engine", shard: Shard, marked: bool) -> list[tuple[str, bytes]]:
    """Names and contents of a shard's files: for each seed a PNG and the JSON that says how it was drawn.

    Args:
        marked: whether the pictures carry the mark that a model made them, as the server's do.
    """
    files = []
    for at in range(shard.first, shard.end, AT_ONCE):
        seeds = range(at, min(at + AT_ONCE, shard.end))
        drawn = await engine.generate(shard.model, seeds=seeds)
        for seed, label, image in zip(seeds, drawn.labels, drawn.images, strict=True):
            told = {"model": drawn.model, "seed": seed, "label": label, "truncation": drawn.truncation}
            picture = encode(image, "png", Provenance(told) if marked else None)
            files += [(f"{seed:010}.png", picture), (f"{seed:010}.json", json.dumps(told).encode())]
    return files


def write(files: Sequence[tuple[str, bytes]], path: Path) -> None:
    """A tar file that is there whole or not at all. The same files give the same bytes."""
    descriptor, part = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as target:
            with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name, content in files:
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
            target.flush()
            os.fsync(target.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


class Drawer:
    """An engine of one worker process, open for as long as the process lives."""

    _own: "Drawer | None" = None

    def __init__(self, settings: Settings) -> None:
        self._loop = asyncio.new_event_loop()
        self._engine = engine_of(settings)
        self._marked = settings.provenance
        self._loop.run_until_complete(self._engine.open())

    @classmethod
    def here(cls, settings: Settings) -> "Drawer":
        """This process's; opened by the first task that comes to it."""
        if cls._own is None:
            cls._own = cls(settings)
        return cls._own

    def ref(self, model: str) -> str:
        """`name@version` of what a name means now, so that a whole run draws one version."""
        try:
            return self._engine.model(model).manifest.ref
        except ModelAsleep as asleep:
            return asleep.ref

    def draw(self, shard: Shard, out: Path) -> str:
        """Draw and write one shard; its name."""
        write(self._loop.run_until_complete(members(self._engine, shard, self._marked)), out / shard.name)
        return shard.name

    def close(self) -> None:
        """End the lanes; a process that ends need not."""
        self._loop.run_until_complete(self._engine.close())
        self._loop.close()


def lean(settings: Settings, cpus: int) -> Settings:
    """For a worker of so many cores: only the model that is asked for is loaded, nothing looked for or timed."""
    changes = {"load_on_demand": True, "poll_models_s": None, "lanes": cpus, "threads_per_lane": 1, "profile_s": 0.0}
    changes |= {"max_images": max(settings.max_images, AT_ONCE)}
    return settings.model_copy(update=changes)


def run(shards: Sequence[Shard], out: Path, settings: Settings, cpus: int, gpus: float) -> Iterator[str]:
    """Have the cluster draw shards; their names as they are done. Ray runs those of lost nodes again.

    Raises:
        RayTaskError: a shard failed for a reason of its own; the others that were under way may be finished.
    """
    import ray  # here: what needs no cluster is tested without

    @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=-1)
    def task(shard: Shard) -> str:
        return Drawer.here(settings).draw(shard, out)

    left = [task.remote(shard) for shard in shards]
    while left:
        (done,), left = ray.wait(left, num_returns=1)
        yield ray.get(done)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every shard is there; 2 for wrong arguments."""
    parser = argparse.ArgumentParser(description="Draw a range of seeds into tar files, on a Ray cluster.")
    parser.add_argument("--model", required=True, help="name or name@version")
    parser.add_argument("--seeds", required=True, metavar="FIRST:END", help="END is not drawn")
    parser.add_argument("--shard", type=int, default=1000, help="seeds in one file")
    parser.add_argument("--out", type=Path, required=True, help="a folder that all nodes see; made where it is not")
    parser.add_argument(
        "--address", default="local", help="of the cluster; `auto` for the one that runs, else one of its own"
    )
    parser.add_argument("--cpus", type=int, default=1, help="cores for each worker")
    parser.add_argument("--gpus", type=float, default=0.0, help="GPUs for each worker")
    given = parser.parse_args(arguments)
    import ray

    settings = lean(Settings(), given.cpus)
    settings = settings.model_copy(update={"models": settings.models.resolve()})
    out = given.out.resolve()
    first, _, end = given.seeds.partition(":")
    drawer = Drawer(settings)
    try:
        shards = shards_of(drawer.ref(given.model), int(first), int(end), given.shard)
    except (ValueError, GanymedeError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        drawer.close()
    out.mkdir(parents=True, exist_ok=True)
    wanted = missing(shards, out)
    print(f"{len(shards)} shards, {len(shards) - len(wanted)} there", flush=True)
    ray.init(address=given.address)
    for name in run(wanted, out, settings, given.cpus, given.gpus):
        print(name, flush=True)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    from deploy import ray_bulk  # by its name, under which workers find it; what is in `__main__` is sent to them whole

    sys.exit(ray_bulk.main())
