"""The null route of `bound.py`: FastAPI on the server's own uvicorn settings, a body model, a constant answer.

python benchmarks/null_route.py PORT PICTURE
"""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel


class Asked(BaseModel):
    """The body that the race sends."""

    model: str
    seed: int


def create_app(data: bytes) -> FastAPI:
    """An app whose `POST /generate` answers this PNG file."""
    app = FastAPI()

    @app.post("/generate")
    async def generate(asked: Asked) -> Response:
        return Response(data, media_type="image/png")

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_app(Path(sys.argv[2]).read_bytes()), port=int(sys.argv[1]), loop="auto", http="httptools",
        access_log=False, server_header=False, timeout_keep_alive=75, log_level="warning",
    )  # fmt: skip
