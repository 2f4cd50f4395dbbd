"""Every error that the service raises on purpose. No HTTP here: `api/problems.py` maps classes to statuses.

GanymedeError
├── InvalidRequest            the caller's arguments are wrong; `field` names which, `allowed` what would be right
│   ├── UnknownModel          no such model or version
│   ├── TaskNotServed         the model exists but serves other tasks
│   ├── TooLarge              more images, pixels or bytes than the limit
│   │   └── ImageTooLarge     an upload's header asks for more than the limits; nothing was decoded
│   ├── ImageUnreadable       an upload is truncated, malformed, or holds more than one file
│   └── ImageTypeUnknown      an upload is of a type that is not read, or of another one than it says
├── Unavailable               nothing is wrong with the request; later or elsewhere it may pass
│   ├── Overloaded            the queue is full or the deadline cannot be met; `retry_after_s`
│   ├── NotReady              still starting, or draining
│   │   └── ModelAsleep       not in memory now; asking for it loads it
│   └── DeadlineExceeded      accepted, but the caller's deadline passed
├── RunFailed                 a run raised, or answered with the wrong rows, shape or values
└── PackageError              a model folder is not what its manifest says
    ├── ManifestInvalid       manifest.json is malformed, or of another schema
    ├── FileInvalid           a file is missing, too large, unreadable or holds the wrong arrays
    ├── HashMismatch          a file differs from its recorded sha256
    ├── GraphMismatch         the graph's inputs or outputs differ from the manifest
    ├── GoldenMismatch        the graph's answers differ from the recorded ones
    └── VersionExists         this version is written already; versions are never overwritten
"""

from collections.abc import Sequence


class GanymedeError(Exception):
    """The root: everything below is raised on purpose and safe to show to a caller.

    Args:
        detail: one sentence for a person.
    """

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(GanymedeError):
    """The request cannot be served as it is.

    Args:
        detail: what is wrong, for a person.
        field: the argument's name as the caller wrote it, e.g. `label` or `latents`.
        allowed: the values that would be right, where they can be listed.
    """

    def __init__(self, detail: str, *, field: str | None = None, allowed: Sequence[str | int] | None = None) -> None:
        super().__init__(detail)
        self.field = field
        self.allowed = list(allowed) if allowed is not None else None


class UnknownModel(InvalidRequest):
    """No loaded model has this name, or not this version."""


class TaskNotServed(InvalidRequest):
    """The model is loaded but does not serve the asked task."""


class TooLarge(InvalidRequest):
    """More images, pixels or bytes than the limit allows."""


class ImageTooLarge(TooLarge):
    """An upload has more bytes, pixels, frames or metadata than the limits; found before anything is decoded."""


class ImageUnreadable(InvalidRequest):
    """An upload is truncated, malformed, or holds another file besides the image."""


class ImageTypeUnknown(InvalidRequest):
    """An upload's bytes are of no type that is read here, or of another type than was declared."""


class Unavailable(GanymedeError):
    """Not served now, though the request is right.

    Args:
        retry_after_s: seconds after which a retry is likely to be accepted, if known.
        reason: a short fixed word for metrics, e.g. `queue_full`.
    """

    def __init__(self, detail: str, *, retry_after_s: float | None = None, reason: str = "unavailable") -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.reason = reason


class Overloaded(Unavailable):
    """The queue is full, or the deadline cannot be met."""


class NotReady(Unavailable):
    """The server is still loading its models, or is draining."""


class ModelAsleep(NotReady):
    """The model is not in memory now; who asks for it waits until it is.

    Args:
        ref: `name@version`.
    """

    def __init__(self, ref: str) -> None:
        super().__init__(f"{ref} is not in memory; a request that draws loads it", reason="asleep")
        self.ref = ref


class DeadlineExceeded(Unavailable):
    """The request was accepted but not finished before its deadline."""


class ProviderUnavailable(GanymedeError):
    """An execution provider that was asked for by name does not work on this machine."""


class RunFailed(GanymedeError):
    """A run raised, or answered with the wrong number of rows, a wrong shape or non-finite values."""


class PackageError(GanymedeError):
    """A model folder is not what its manifest says.

    Args:
        model: `name@version`, or the folder's name where the manifest cannot be read.
    """

    def __init__(self, detail: str, *, model: str) -> None:
        super().__init__(f"{model}: {detail}")
        self.model = model


class ManifestInvalid(PackageError):
    """`manifest.json` is malformed, incomplete or of another schema."""


class FileInvalid(PackageError):
    """A file of the folder is missing, too large, unreadable, or holds other arrays than the manifest names."""


class HashMismatch(PackageError):
    """A file differs from the sha256 that the manifest records."""


class GraphMismatch(PackageError):
    """The session's real inputs or outputs differ from the manifest's."""


class GoldenMismatch(PackageError):
    """The session's answers differ from `golden.npz` by more than the tolerance."""


class VersionExists(PackageError):
    """This version is written already; versions are never overwritten."""
