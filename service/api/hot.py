"""The hot endpoints, `POST /generate` and `GET /generate`, on plain data: whichever way a request came, this is it.

A request is taken apart by `HOT[method, path]` into a `Drawing`, or answered at once; the engine draws; `answered`
writes the answer. Two ways lead through here: ASGI (`direct.py`) and the connection itself (`fast.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from service.api.negotiation import NPY, Form, choose, matches
from service.api.parts import Parts
from service.api.pictures import Rendered, entity_tag, render, tag_base
from service.api.plain import Headers, Reply
from service.api.recipes import Recipe
from service.api.record import Record
from service.api.requests import left_of, number_of, serving, timeout_of
from service.manifest import Task

if TYPE_CHECKING:
    from service.engine.engine import Generated

PINNED_CACHE_S = 31_536_000
TASK = Task.GENERATE.value


class Asked(NamedTuple):
    """A request that is here as a whole."""

    record: Record
    headers: Headers
    query: bytes
    body: bytes


@dataclass(slots=True)
class Drawing:
    """What the engine is asked for, as `Engine.generate` takes it, and how the answer is written."""

    arguments: dict[str, Any]
    form: Form
    headers: list[tuple[bytes, bytes]]
    latents: str | None = None
    """How they are written, where they come along."""


Begin = Callable[[Parts, Asked], Drawing | Reply]

NPY_TYPE = NPY.encode("ascii")
_VARY = (b"vary", b"Accept")


def posted(parts: Parts, asked: Asked) -> Drawing:
    """One image for each seed, seeds drawn for a count, or latents given outright.

    Raises:
        GanymedeError: the request is wrong, or cannot be served now.
    """
    record, headers = asked.record, asked.headers
    record.task = TASK
    timeout_s = timeout_of(headers, parts)
    accept = headers.joined(b"accept")
    kind = headers.first(b"content-type") or b""
    if kind == NPY_TYPE or kind.partition(b";")[0].strip().lower() == NPY_TYPE:
        recipe, seeds = parts.recipes.of_npy(asked.body, asked.query), None
    else:
        recipe, seeds = parts.recipes.of_body(asked.body, headers, accept)
    record.stages["read"] = perf_counter() - record.started
    form = _settled(parts, record, recipe, accept)
    own = [_VARY]
    if recipe.tag is not None:
        own.append((b"etag", entity_tag(recipe.tag, seeds).encode("ascii")))
    return Drawing(_arguments(asked, recipe, seeds, timeout_s), form, own, recipe.request.return_latents)


def linked(parts: Parts, asked: Asked) -> Drawing | Reply:
    """The same picture as `POST /generate` with one seed, cacheable.

    Raises:
        GanymedeError: the request is wrong, or cannot be served now.
    """
    record, headers = asked.record, asked.headers
    record.task = TASK
    accept = headers.joined(b"accept")
    recipe, seeds = parts.recipes.of_query(asked.query, accept)
    record.stages["read"] = perf_counter() - record.started
    form = _settled(parts, record, recipe, accept, "image")
    own = [(b"cache-control", recipe.cache), _VARY]
    if recipe.tag is not None:
        tag = entity_tag(recipe.tag, seeds)
        own.append((b"etag", tag.encode("ascii")))
        if matches(tag, headers.joined(b"if-none-match")):
            return Reply(304, own, b"")
    return Drawing(_arguments(asked, recipe, seeds, timeout_of(headers, parts)), form, own)


HOT: dict[tuple[str, str], Begin] = {("POST", "/generate"): posted, ("GET", "/generate"): linked}
"""By method and path. A POST's body is read before its function is called."""


def took(record: Record, drawing: Drawing, drawn: "Generated") -> None:
    """Note on the record what the engine has done."""
    record.coalesced = drawn.coalesced
    if drawn.model != record.model:  # another version came in between: the tag names the one before
        drawing.headers = [pair for pair in drawing.headers if pair[0] != b"etag"]
        record.model = drawn.model
    record.take(drawn.timings)


def rendering(parts: Parts, drawing: Drawing, drawn: "Generated") -> Rendered:
    """The answer's body and its own headers; from any thread."""
    marked = parts.settings.provenance
    return render(drawn, drawing.form, parts.encode_options, marked=marked, latents=drawing.latents)


def answered(record: Record, drawing: Drawing, drawn: "Generated", rendered: Rendered, began: float) -> Reply:
    """The whole answer.

    Args:
        began: `perf_counter()` when the pictures came to be encoded.
    """
    record.stages["encode"] = perf_counter() - began
    nothing = record.method == "HEAD" or drawing.form.shape == "npy"  # holds no pictures
    record.images = 0 if nothing else len(drawn.images)
    length, kind = (b"content-length", b"%d" % len(rendered.body)), (b"content-type", rendered.media_type.encode())
    return Reply(200, [*rendered.headers, *drawing.headers, length, kind], rendered.body)


def _settled(parts: Parts, record: Record, recipe: Recipe, accept: str | None, shape: str | None = None) -> Form:
    """Fill in what the recipe has not for the model that serves it now; the answer's form.

    Raises:
        UnknownModel, TaskNotServed, NotReady, NotAcceptable.
    """
    request = recipe.request
    info = serving(parts, request.model, Task.GENERATE)
    if recipe.info is not info or recipe.form is None:
        record.model = info.ref
        recipe.form = choose(shape or request.shape, request.format, request.images, accept)
        recipe.tag = tag_base(parts, info, request, recipe.form)
        recipe.cache = _cache_of(parts, pinned=request.model == info.ref)
        recipe.info, recipe.ref = info, info.ref
    record.model = recipe.ref
    return recipe.form


def _cache_of(parts: Parts, *, pinned: bool) -> bytes:
    """A link's `cache-control`: for ever where it names the version, too."""
    seconds = PINNED_CACHE_S if pinned else parts.settings.cache_s
    return (f"{parts.cached_by}, max-age={seconds}" + (", immutable" if pinned else "")).encode("ascii")


def _arguments(asked: Asked, recipe: Recipe, seeds: list[int] | None, timeout_s: float) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        **recipe.arguments,
        "seeds": seeds,
        "priority": number_of(asked.headers, "X-Priority", 1, 9) or 5,
        "timeout_s": left_of(asked.record, timeout_s),
        "lone": asked.record.lone,
    }
    if asked.record.share is not None:
        arguments["share"] = asked.record.share
    return arguments
