"""What can go wrong with data.

DataError
├── UnknownSource        neither a named set nor an existing path
├── NothingUsable        a source that holds no image that can be used
├── BadFiles             strict: files that would otherwise be repaired or left out
├── BrokenSet            a prepared set whose files do not agree with each other
└── FetchError           a package could not be had
    ├── ClientMissing    the package client is not installed
    ├── ClientFailed     the package client ended with an error
    └── ChecksumMismatch the bytes are not the ones that were pinned
"""


class DataError(Exception):
    """Base of everything that this package raises on purpose; its text is meant for the user."""


class UnknownSource(DataError):
    """The source is neither the name of a public set, nor a prepared set, nor an existing path."""


class NothingUsable(DataError):
    """No usable image remains after the bad files were left out."""


class BadFiles(DataError):
    """Strict loading met files that need a repair or cannot be used."""


class BrokenSet(DataError):
    """A prepared set, or a file of a known format, contradicts itself."""


class FetchError(DataError):
    """A package could not be fetched."""


class ClientMissing(FetchError):
    """The package client is not on the PATH."""


class ClientFailed(FetchError):
    """The package client ran and failed."""


class ChecksumMismatch(FetchError):
    """A file's SHA-256 differs from the pinned one."""
