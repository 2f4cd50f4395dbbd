"""Requests that differ in their seed alone are checked once: to read JSON by a schema costs more than a small picture.

The text around the seed's digits is looked up. It is known only if the whole text was accepted with two seeds in that
place, by the checks that every request goes through; so the place holds the seed and nothing else, and any other
seed in range would have been accepted too. What was refused is not remembered and is checked anew each time.
A range of seeds is such a place too, for as many seeds.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from service.api import schemas
from service.api.negotiation import NPY, Form
from service.api.plain import Headers
from service.api.strict_json import object_of
from service.engine.latents import SEED_END
from service.errors import GanymedeError

if TYPE_CHECKING:
    from service.engine.engine import ModelInfo

KNOWN_MOST = 512
"""Texts remembered; they are forgotten all at once when there are more."""
TEXT_BYTES = 512
"""Of a text, or an `Accept`, that is remembered: what a person types, and no array of latents."""

# No backslash may stand before the name: it could be part of a string then.
_IN_BODY = re.compile(rb'([^\\]*"seed"[ \t\r\n]*:[ \t\r\n]*)(0|[1-9][0-9]{0,9})([ \t\r\n]*[,}].*)', re.DOTALL)
_RANGE_IN_BODY = re.compile(
    rb'([^\\]*"seeds"[ \t\r\n]*:[ \t\r\n]*")(0|[1-9][0-9]{0,9})-(0|[1-9][0-9]{0,9})("[ \t\r\n]*[,}].*)', re.DOTALL
)
_IN_QUERY = re.compile(rb"((?:.*&)?seed=)(0|[1-9][0-9]{0,9})((?:&.*)?)", re.DOTALL)

Context = tuple[bytes | str | None, str | None]
Key = tuple[bytes, bytes, int, bytes | str | None, str | None]
"""What stands before and after the digits, how many seeds a range has (0: a seed alone), and the context."""
Parse = Callable[[bytes], schemas.GenerateRequest]


@dataclass(slots=True)
class Recipe:
    """A checked request but for its seed, and what follows from it for the model that was asked last.

    Filled in by the first request and made anew for another model: `info`, its `ref`, the answer's `form`, `tag`,
    the hash of all that the ETag names before the seeds, and `cache`, what a link's `cache-control` says.
    """

    request: schemas.GenerateRequest
    info: "ModelInfo | None" = None
    ref: str = ""
    form: Form | None = None
    tag: str | None = None
    cache: bytes = b""
    arguments: dict[str, Any] = field(init=False)
    """What of the request `Engine.generate` takes, but for the seeds."""

    def __post_init__(self) -> None:
        request = self.request
        self.arguments = {
            "model": request.model,
            "count": request.count,
            "latents": request.latents,
            "labels": None if isinstance(request.label, tuple) else request.label,
            "truncation": request.truncation,
            "steering": request.steering,
        }


class Recipes:
    """What was accepted lately. Belongs to one app."""

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._known: dict[Key, Recipe | None] = {}  # None: met once, which may have been its only time

    def of_body(self, body: bytes, headers: Headers, accept: str | None) -> tuple[Recipe, list[int] | None]:
        """The recipe of a JSON body, and its seeds.

        Raises:
            InvalidRequest: see `strict_json.object_of` and `schemas.parse_generate`.
        """
        kind = headers.first(b"content-type")

        def parse(text: bytes) -> schemas.GenerateRequest:
            return schemas.parse_generate(object_of(text, headers, (NPY,)), max_images=self._max_images)

        return self._of((_IN_BODY, _RANGE_IN_BODY), body, (kind, accept), parse)

    def of_npy(self, body: bytes, query: bytes) -> Recipe:
        """The recipe of a body of latents. They are not remembered.

        Raises:
            InvalidRequest: see `schemas.parse_npy`.
        """
        pairs = parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True)
        return Recipe(schemas.parse_npy(body, pairs, max_images=self._max_images))

    def of_query(self, query: bytes, accept: str | None) -> tuple[Recipe, list[int] | None]:
        """The recipe of a query, and its seed.

        Raises:
            InvalidRequest: see `schemas.parse_query`.
        """

        def parse(text: bytes) -> schemas.GenerateRequest:
            return schemas.parse_query(parse_qsl(text.decode("utf-8", "replace"), keep_blank_values=True))

        return self._of((_IN_QUERY,), query, ("GET", accept), parse)

    def _of(
        self, patterns: "tuple[re.Pattern[bytes], ...]", text: bytes, context: Context, parse: Parse
    ) -> tuple[Recipe, list[int] | None]:
        """Look up the text around the seed; check what is not known."""
        found = None
        if len(text) <= TEXT_BYTES and len(context[1] or "") <= TEXT_BYTES:
            for pattern in patterns:
                found = pattern.fullmatch(text)
                if found is not None:
                    break
        if found is None:
            return _anew(parse(text))
        before, first, *last, after = found.groups()
        seeds = range(int(first), int(last[0] if last else first) + 1)
        if not seeds:
            return _anew(parse(text))
        key = (before, after, len(seeds) if last else 0, *context)
        recipe = self._known.get(key)
        if recipe is None or seeds[-1] >= SEED_END:
            request = parse(text)
            recipe = self._remembered(key, seeds, request, parse)
            if recipe is None:
                return _anew(request)
        return recipe, list(seeds)

    def _remembered(self, key: Key, seeds: range, request: schemas.GenerateRequest, parse: Parse) -> Recipe | None:
        """Remember a text that was accepted with these seeds, if it is with others, and they are where they seemed.

        Not at once: many texts are met a single time, and to check each twice would be their loss.
        """
        if key not in self._known:
            if len(self._known) >= KNOWN_MOST:
                self._known.clear()
            self._known[key] = None
            return None
        before, after, count, *_ = key
        other = 1 if seeds[0] != 1 else 2
        others = range(other, other + len(seeds))
        digits = b"%d-%d" % (others[0], others[-1]) if count else b"%d" % other
        try:
            again = parse(before + digits + after)
        except GanymedeError:
            return None
        if not _asks_for(request, seeds) or not _asks_for(again, others):
            return None
        recipe = self._known[key] = Recipe(request)
        return recipe


def _anew(request: schemas.GenerateRequest) -> tuple[Recipe, list[int] | None]:
    return Recipe(request), _seeds_of(request)


def _seeds_of(request: schemas.GenerateRequest) -> list[int] | None:
    return request.seeds if request.seed is None else [request.seed]


def _asks_for(request: schemas.GenerateRequest, seeds: range) -> bool:
    given = _seeds_of(request)
    return given is not None and len(given) == len(seeds) and given == list(seeds)
