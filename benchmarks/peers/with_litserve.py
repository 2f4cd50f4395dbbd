"""LitServe: HTTP processes hand requests to inference processes through queues."""

from typing import Any

import litserve as ls
from drawing import BATCH, CORES, MODELS, PORT, Generators
from fastapi import Response


class Draw(ls.LitAPI):
    """Model and seed in, PNG out."""

    def setup(self, device: str) -> None:
        """Once in each inference process."""
        self.generators = Generators(MODELS)

    def decode_request(self, request: dict[str, Any]) -> tuple[str, int]:
        """The body as a pair."""
        return request["model"], request["seed"]

    def batch(self, inputs: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """As they are: rows are stacked model by model in `draw`."""
        return inputs

    def predict(self, x: Any) -> Any:
        """With batching a list of pairs, without it one pair."""
        return self.generators.draw(x) if BATCH > 1 else self.generators.draw([x])[0]

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """As they are."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """A ready response, as LitServe's page on images shows."""
        return Response(output, media_type="image/png")


if __name__ == "__main__":
    # batch_timeout 0 takes what is queued now; any wait only adds latency where runs take a millisecond.
    api = Draw(max_batch_size=BATCH, batch_timeout=0.0, api_path="/generate")
    # One inference process per core; fast_queue (ZeroMQ) is LitServe's advice for many requests per second.
    server = ls.LitServer(
        api, accelerator="cpu", devices=1, workers_per_device=CORES, fast_queue=True, track_requests=False
    )
    # As many HTTP processes as inference processes: LitServe's default, and they share the cores.
    server.run(
        host="127.0.0.1", port=PORT, num_api_servers=CORES, log_level="warning", generate_client_file=False,
        access_log=False,
    )  # fmt: skip
