"""Errors of the HTTP side alone; `service.errors` has those of the domain."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from service import errors


class MalformedBody(errors.InvalidRequest):
    """The body is no JSON object."""


class MalformedForm(errors.InvalidRequest):
    """The body is no multipart form, or one that is cut off or out of bounds."""


class UnsupportedMediaType(errors.InvalidRequest):
    """The body is of a type that the endpoint does not read."""


class BodyTooSlow(errors.InvalidRequest):
    """The body did not arrive within the deadline."""


class BodyTooLarge(errors.TooLarge):
    """The body has more bytes than the limit."""


class NotAcceptable(errors.InvalidRequest):
    """Nothing that the endpoint can send is in `Accept`."""


class AdminOff(errors.InvalidRequest):
    """An operator's call while the setting `admin` is off."""


class KeyMissing(errors.InvalidRequest):
    """A key is asked for, and none was sent."""


class KeyUnknown(errors.InvalidRequest):
    """The key that was sent is none of this server's."""


class ScopeMissing(errors.InvalidRequest):
    """The key is known, but not for this."""


class HostUnknown(errors.InvalidRequest):
    """The request names another server."""


class RateLimited(errors.Unavailable):
    """The client has asked more often than it may."""


class FileMissing(errors.InvalidRequest):
    """The model is there, but not this file of it."""


_STEP = re.compile(r"\[([0-9]+)\]|\.([a-z_]+)")


def pointer(field: str, detail: str = "") -> str:
    """Where in the body an error is, as a JSON pointer in a URI fragment (RFC 6901, sections 3 and 6).

    Args:
        detail: the error's. Of one inside the field it begins with the path, `latents[1][3]` or `styles[0].layers`.
    """
    steps, at = [field], len(field)
    if field and detail.startswith(field):
        while step := _STEP.match(detail, at):
            steps.append(step[1] or step[2])
            at = step.end()
        if at < len(detail) and detail[at] not in " :":  # it goes on in a way that only the field itself explains
            steps = [field]
    escaped = "/".join(step.replace("~", "~0").replace("/", "~1") for step in steps)
    return "#/" + quote(escaped, safe="~!$&'()*+,;=:@/", errors="replace")


class Invalid(errors.InvalidRequest):
    """Several fields are wrong at once.

    Args:
        errors: one `{"detail", "pointer"}` each, the first repeated in `detail` and `field`.
    """

    def __init__(
        self, errors: Sequence[Mapping[str, object]], *, field: str | None, allowed: Sequence[str | int] | None
    ) -> None:
        super().__init__("; ".join(str(error["detail"]) for error in errors[:3]), field=field, allowed=allowed)
        self.errors = [dict(error) for error in errors]


def raise_all(wrong: Sequence[errors.InvalidRequest]) -> None:
    """Raise what is wrong, if anything is: one error as it is, several as one that lists each."""
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        told = [{"detail": one.detail, "pointer": pointer(one.field or "", one.detail)} for one in wrong]
        raise Invalid(told, field=wrong[0].field, allowed=wrong[0].allowed)


class ClientGone(Exception):
    """The client closed the connection before its answer; nobody reads what follows."""
