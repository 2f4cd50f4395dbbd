"""Plain FastAPI: what most people write first. It has no batching."""

import os

import uvicorn
from drawing import CORES, MODELS, PORT, Generators
from fastapi import FastAPI, Response
from pydantic import BaseModel


class Asked(BaseModel):
    """The request's body."""

    model: str
    seed: int


app = FastAPI()
generators = Generators(MODELS)


def draw(asked: Asked) -> Response:
    """One picture. As `def` it runs in FastAPI's thread pool: the documented place for work that blocks."""
    return Response(generators.draw([(asked.model, asked.seed)])[0], media_type="image/png")


async def draw_on_loop(asked: Asked) -> Response:
    """The same on the event loop itself: no way to a thread and back, but nothing else goes on meanwhile."""
    return draw(asked)


app.post("/generate")(draw_on_loop if os.environ.get("PEER_ON_LOOP") else draw)


if __name__ == "__main__":
    # A process for each core, as FastAPI's page on deployment recommends; uvicorn is fastest on uvloop and httptools.
    uvicorn.run(
        "with_fastapi:app", port=PORT, workers=CORES, loop="uvloop", http="httptools", log_level="warning",
        access_log=False,
    )  # fmt: skip
