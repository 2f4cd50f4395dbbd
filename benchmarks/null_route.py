"""The null route of `bound.py`: FastAPI on the server's own uvicorn settings, a body model, a constant answer.

python benchmarks/null_route.py PORT MODEL.png|MODEL.zip...
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

TYPES = {".png": "image/png", ".zip": "application/zip"}


class Asked(BaseModel):
    """The bodies that the loads send."""

    model: str
    seed: int | None = None
    seeds: str | None = None


def create_app(files: Mapping[str, tuple[bytes, str]]) -> FastAPI:
    """An app whose `POST /generate` answers a model's file: its bytes and media type."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(asked: Asked) -> Response:
        data, media_type = files[asked.model]
        return Response(data, media_type=media_type)

    return app


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[2:]]
    uvicorn.run(
        create_app({path.stem: (path.read_bytes(), TYPES[path.suffix]) for path in paths}),
        port=int(sys.argv[1]), loop="auto", http="httptools",
        access_log=False, server_header=False, timeout_keep_alive=75, log_level="warning",
    )  # fmt: skip
