"""What a large model takes and leaves, in a process of its own: the heap of a process that did other things before has
room of its own making. Prints a JSON list of [bytes held, bytes left, weight] for each round.

python memory_rounds.py MODELS ROUNDS; MODELS holds `tiny` and, not yet to be seen, `_wide`.
"""

import asyncio
import json
import sys
from pathlib import Path

from service.engine.engine import Engine, EngineOptions
from service.process import bound_heaps


async def rounds(models: Path, number: int) -> list[tuple[int, int, int]]:
    """Load, draw, unload, so many times."""
    found = []
    options = EngineOptions(models=models, providers=("cpu",), profile_s=0, poll_models_s=None, lanes=1)
    async with Engine(options) as engine:
        await engine.generate("tiny", seeds=[1])
        (models / "_wide").rename(models / "wide")
        for _ in range(number):
            before = engine.memory().resident_bytes
            await engine.load("wide")
            await engine.generate("wide", seeds=range(8))
            held = engine.memory().resident_bytes - before
            weight = engine._repository.resolve("wide").weight_bytes
            await engine.unload("wide")
            while engine._repository._retiring:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            found.append((held, engine.memory().resident_bytes - before, weight))
    return found


if __name__ == "__main__":
    bound_heaps(2)  # as the server's process does
    print(json.dumps(asyncio.run(rounds(Path(sys.argv[1]), int(sys.argv[2])))))
