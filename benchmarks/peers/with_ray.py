"""Ray Serve: a proxy hands requests to replicas, each a process of its own."""

import signal
from contextlib import suppress

import ray
from drawing import BATCH, CORES, MODELS, PORT, Generators
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response


# One replica per core; far more requests in flight than the race sends, so that none waits in the proxy.
@serve.deployment(num_replicas=CORES, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Draw:
    """Takes the request as it is: a FastAPI ingress would only add a second round of routing."""

    def __init__(self) -> None:
        self.generators = Generators(MODELS)

    async def __call__(self, request: Request) -> Response:
        """One picture."""
        asked = await request.json()
        pair = (asked["model"], asked["seed"])
        data = await self.draw(pair) if BATCH > 1 else self.generators.draw([pair])[0]
        return Response(data, media_type="image/png")

    # No wait for a fuller batch: requests that come while one runs are batched all the same.
    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.0)
    async def draw(self, asked: list[tuple[str, int]]) -> list[bytes]:
        """PNG files for pairs of model and seed."""
        return self.generators.draw(asked)


if __name__ == "__main__":
    # CPUs are Ray's bookkeeping, not pinned: one each for the replicas and room for the proxy and the controller.
    ray.init(num_cpus=CORES + 2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    for _ in range(4):
        # On a busy machine the proxy may need more than the minute for which this waits; the controller goes on trying.
        with suppress(TimeoutError, RayError):
            serve.start(http_options=HTTPOptions(host="127.0.0.1", port=PORT), logging_config=quiet)
            break
    serve.run(Draw.bind(), route_prefix="/generate", logging_config=quiet)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
