"""Frames to the bytes of an answer: an animation, a grid, a zip, or pieces that are sent while frames are made.

Three forms come in pieces: APNG, `multipart/x-mixed-replace` (each part a picture that takes the last one's place, as
browsers show it) and `application/x-ndjson` (a line of JSON for each frame). An error after the first frame cuts the
connection, or is the last line.
"""

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from service.api import problems
from service.api.negotiation import MotionForm
from service.api.parts import Parts
from service.api.pictures import mark_of
from service.api.reading import apart
from service.engine.wire import base64_of, npy_of
from service.errors import GanymedeError
from service.imaging import FORMATS, Provenance, compose_grid, encode
from service.imaging.animation import ApngStream, Pace, animate
from service.imaging.archive import stored_zip

if TYPE_CHECKING:
    from service.engine.engine import Motion

T = TypeVar("T")
Frames = npt.NDArray[np.uint8]
Pieces = AsyncGenerator[bytes, None]

BOUNDARY = "ganymede-frame"


class Writer:
    """A motion in one form.

    Args:
        mark: what the animation's file says of itself, where files are marked.
        recipe: what asks for it again.
    """

    def __init__(
        self, parts: Parts, motion: "Motion", form: MotionForm, pace: Pace, mark: Provenance, recipe: dict[str, object]
    ) -> None:
        self._parts, self._motion, self._form, self._pace, self._recipe = parts, motion, form, pace, recipe
        self._mark = mark if parts.settings.provenance else None

    def whole(self, frames: Frames) -> bytes:
        """All frames at once; from a worker thread."""
        form, options = self._form, self._parts.encode_options
        if form.shape == "animation":
            return animate(frames, form.fmt, self._pace, self._mark, options)
        if form.shape == "grid":
            return encode(compose_grid(frames), form.fmt, self._mark, options)
        width = max(3, len(str(len(frames) - 1)))
        named = [(f"frame-{place:0{width}}.{form.fmt}", self._file(place, one)) for place, one in enumerate(frames)]
        about = {**self._recipe, "files": [name for name, _ in named]}
        about |= {} if self._motion.labels is None else {"labels": list(self._motion.labels)}
        told = json.dumps(about, indent=1).encode("ascii")
        latents = npy_of(self._motion.latents)
        return stored_zip([*named, ("latents.npy", latents), ("animation.json", told + b"\n")])

    def pieces(self) -> Pieces | None:
        """The answer in pieces, the first of which holds the first frame; None for a form that is written at once."""
        if self._form == MotionForm("animation", "apng"):
            return self._apng()
        return {"stream": self._mixed, "ndjson": self._lines}.get(self._form.shape, lambda: None)()

    async def _apng(self) -> Pieces:
        motion = self._motion
        chunks = self._mark.png_chunks() if self._mark else ()
        writer = ApngStream(motion.frames, (motion.height, motion.width, motion.channels), self._pace, chunks)
        head = writer.head()
        async for batch in self._batches():
            yield head + await apart(self._parts, lambda frames=batch[1]: b"".join(map(writer.frame, frames)))  # type: ignore[misc]
            head = b""
        yield writer.end()

    async def _mixed(self) -> Pieces:
        async for place, file in self._files():
            about = (
                f"Content-Type: {FORMATS[self._form.fmt]}\r\nContent-Length: {len(file)}\r\nX-Frame: {place}\r\n\r\n"
            )
            yield f"--{BOUNDARY}\r\n{about}".encode("ascii") + file + b"\r\n"
        yield f"--{BOUNDARY}--\r\n".encode("ascii")

    async def _lines(self) -> Pieces:
        motion = self._motion
        head = {**self._recipe, "height": motion.height, "width": motion.width}
        before = json.dumps(head).encode("ascii") + b"\n"
        try:
            async for place, file in self._files():
                line = {"frame": place, "media_type": FORMATS[self._form.fmt], "b64": base64.b64encode(file).decode()}
                yield before + json.dumps(line).encode("ascii") + b"\n"
                before = b""
        except GanymedeError as error:
            if before:  # there is a status yet to say it with
                raise
            problem = json.loads(problems.reply_to(error, None).body)
            yield json.dumps({"error": problem}).encode("ascii") + b"\n"
            return
        tally = motion.tally
        timings = {"queue_s": tally.queue_s, "run_s": tally.run_s, "batch_rows": tally.batch_rows, "runs": tally.runs}
        yield json.dumps({"done": True, "timings": timings}).encode("ascii") + b"\n"

    async def _batches(self) -> AsyncGenerator[tuple[int, Frames], None]:
        place = 0
        async with aclosing(self._motion.batches) as batches:  # type: ignore[type-var]
            async for batch in batches:
                yield place, batch
                place += len(batch)

    async def _files(self) -> AsyncGenerator[tuple[int, bytes], None]:
        """Each frame's file in order; a batch is encoded while the next is drawn."""
        async with aclosing(self._batches()) as batches:
            async for start, batch in batches:
                files = await apart(self._parts, partial(self._encoded, start, batch))
                for place, file in enumerate(files, start):
                    yield place, file

    def _encoded(self, start: int, batch: Frames) -> list[bytes]:
        return [self._file(place, frame) for place, frame in enumerate(batch, start)]

    def _file(self, place: int, frame: Frames) -> bytes:
        """One frame as a picture of its own, which says how to draw it alone."""
        mark, motion = None, self._motion
        if self._mark is not None:
            told = {"model": motion.model, "latents": base64_of(motion.latents[place]), **motion.alone(place)}
            mark = mark_of(told, motion.model)
        return encode(frame, self._form.fmt, mark, self._parts.encode_options)
