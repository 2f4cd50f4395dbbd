"""API keys: made here, kept as hashes, compared in constant time.

A key is 256 random bits, so that one round of SHA-256 keeps it: there is nothing to guess, and nothing that a slow hash
would slow down but the server. Keys are lines of a file, or of the setting `keys`:

    # name  hash                 scopes              limits (all optional)
    alice   sha256:5f1d...c0     generate            rate=20 burst=40 share=2
    ops     sha256:0a7b...91     generate,admin
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Scope = Literal["generate", "admin"]
SCOPES: tuple[str, ...] = get_args(Scope)

PREFIX = "gany_"
"""What every key begins with, so that scanners find those that were published by mistake."""
SECRET_BYTES = 32

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Key:
    """One key, without its secret.

    Args:
        name: who uses it, for logs.
        digest: SHA-256 of the key.
        scopes: what it may be used for.
        rate_per_s: requests a second, on average; None takes the setting's.
        burst: requests at once; None takes the setting's.
        share: of the queue, against others' 1, where clients take turns.
    """

    name: str
    digest: bytes
    scopes: frozenset[str] = frozenset({"generate"})
    rate_per_s: float | None = None
    burst: float | None = None
    share: float = 1.0

    @property
    def line(self) -> str:
        """As a file holds it."""
        words = [self.name, f"sha256:{self.digest.hex()}", ",".join(sorted(self.scopes))]
        words += [f"rate={self.rate_per_s:g}"] if self.rate_per_s is not None else []
        words += [f"burst={self.burst:g}"] if self.burst is not None else []
        words += [f"share={self.share:g}"] if self.share != 1.0 else []
        return " ".join(words)


def digest_of(secret: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(secret).digest()


def new_secret() -> str:
    """A new key, as its user sends it."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


class KeysWrong(ValueError):
    """A list of keys cannot be read. The message names the line by its number, never what is in it."""


def read_keys(text: str, source: str) -> list[Key]:
    """The keys of a list, one a line (or parted by `;`), `#` begins a comment.

    Args:
        source: where the list is from, for errors.

    Raises:
        KeysWrong: a line is no key, or two have one name or one hash.
    """
    found: list[Key] = []
    for number, line in enumerate(re.split(r"[\n;]", text), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            found.append(_key(words))
        except ValueError as error:
            raise KeysWrong(f"{source}, line {number}: {error}") from None
    for what, values in (("name", [key.name for key in found]), ("hash", [key.digest for key in found])):
        if len(set(values)) < len(values):
            raise KeysWrong(f"{source}: two keys have the same {what}")
    return found


def _key(words: list[str]) -> Key:
    if len(words) < 2 or not _NAME.fullmatch(words[0]) or not (digest := _HASH.fullmatch(words[1])):
        raise ValueError("must begin with a name and sha256:<64 hexadecimal digits>; `python -m service key` makes one")
    scopes, numbers = frozenset({"generate"}), {"rate": None, "burst": None, "share": 1.0}
    for word in words[2:]:
        name, equals, value = word.partition("=")
        if not equals:
            scopes = frozenset(word.split(","))
            if not scopes <= set(SCOPES):
                raise ValueError(f"scopes are {' and '.join(SCOPES)}, parted by a comma")
            continue
        if name not in numbers:
            raise ValueError(f"besides scopes there are {', '.join(numbers)}")
        numbers[name] = _positive(name, value)
    share = numbers["share"]
    assert share is not None
    return Key(words[0], bytes.fromhex(digest[1]), scopes, numbers["rate"], numbers["burst"], share)


def _positive(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise ValueError(f"{name} must be a number above 0")
    return number


class Keyring:
    """The keys that are known.

    Args:
        listed: keys that stay.
        path: a file with further ones, read again when it changes.

    Raises:
        KeysWrong, OSError: the file cannot be read.
    """

    def __init__(self, listed: Iterable[Key], path: Path | None = None) -> None:
        self._listed, self._path = list(listed), path
        self._seen = self._fingerprint()
        self._by_start: dict[bytes, list[Key]] = {}
        self._take(self._read())

    def __len__(self) -> int:
        return sum(map(len, self._by_start.values()))

    def find(self, secret: bytes) -> Key | None:
        """The key that a client sent, if it is one. In constant time for keys of one length.

        Looked up by the first bytes of its hash, which nobody can choose, then compared as a whole.
        """
        digest = digest_of(secret)
        found = None
        for key in self._by_start.get(digest[:4], ()):
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def refresh(self) -> bool:
        """Read the file again where it has changed; whether it had. One that is wrong changes nothing.

        Raises:
            KeysWrong, OSError: the file cannot be read; the keys before stay. Said once for each change.
        """
        now = self._fingerprint()
        if now == self._seen:
            return False
        self._seen = now
        self._take(self._read())
        return True

    def _fingerprint(self) -> tuple[int, int, int] | None:
        if self._path is None:
            return None
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> list[Key]:
        return [] if self._path is None else read_keys(_text_of(self._path), str(self._path))

    def _take(self, from_file: list[Key]) -> None:
        keys = [*self._listed, *from_file]
        if len({key.name for key in keys}) < len(keys):
            raise KeysWrong("two keys have the same name, one in `keys` and one in `keys_file`")
        found: dict[bytes, list[Key]] = {}
        for key in keys:
            found.setdefault(key.digest[:4], []).append(key)
        self._by_start = found


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise KeysWrong(f"{path}: is not a text in UTF-8") from None


def append_key(path: Path, key: Key) -> None:
    """Add a key to a file, which nobody but its owner may read when this makes it.

    Raises:
        KeysWrong: there is one of this name already. OSError.
    """
    text = _text_of(path) if path.exists() else ""
    if any(other.name == key.name for other in read_keys(text, str(path))):
        raise KeysWrong(f"{path}: there is a key named {key.name} already")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "a") as file:
        file.write(("" if not text or text.endswith("\n") else "\n") + key.line + "\n")
