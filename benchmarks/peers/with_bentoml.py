"""BentoML, started by `bentoml serve with_bentoml:Draw` (or `:Front` with adaptive batching)."""

from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from drawing import BATCH, CORES, MODELS, Generators

Png = Annotated[bytes, ContentType("image/png")]
# One process per core. Metrics and the access log are off: they are work that no other racer does for each request.
QUIET = {"metrics": {"enabled": False}, "logging": {"access": {"enabled": False}}}


@bentoml.service(workers=CORES, **QUIET)
class Draw:
    """Without batching: one service does it all."""

    def __init__(self) -> None:
        self.generators = Generators(MODELS)

    @bentoml.api(route="/generate")
    def generate(self, model: str, seed: int) -> Png:
        """One picture. As `def` it runs in the service's thread pool: the documented place for work that blocks."""
        return self.generators.draw([(model, seed)])[0]


# The client between the two services renews its connections after 100 requests by default, and then fails those that
# are under way: at 16 clients and more some pictures would be lost.
@bentoml.service(workers=CORES, runner_connection={"max_requests": 10**9, "max_age": 86400.0}, **QUIET)
class Batched:
    """The half that batches: a batchable endpoint takes one list and answers one list."""

    def __init__(self) -> None:
        self.generators = Generators(MODELS)

    # The latency goal stays at its default of a minute: the dispatcher waits no longer for it, and a lower one made it
    # refuse requests at 64 clients. (A service that is not served must still be declared with more than one row.)
    @bentoml.api(batchable=True, max_batch_size=max(BATCH, 2))
    async def draw(self, asked: list[str]) -> list[bytes]:
        """PNG files for texts such as `fashion-28 17`: strings cross between the services at the least cost."""
        pairs = [text.rsplit(" ", 1) for text in asked]
        return self.generators.draw([(model, int(seed)) for model, seed in pairs])


@bentoml.service(workers=CORES, **QUIET)
class Front:
    """The half that answers HTTP: BentoML's documented shape where an endpoint that batches has several fields."""

    batched = bentoml.depends(Batched)

    @bentoml.api(route="/generate")
    async def generate(self, model: str, seed: int) -> Png:
        """One picture."""
        return (await self.batched.to_async.draw([f"{model} {seed}"]))[0]
