"""Who may ask for what, how often, and under which name of this server: one look for every request, whichever way it is
served.

`Guard.look` is called where a request's record has been opened: by a middleware on the ASGI way, by the connection on
its own. With nothing of it set there is no guard at all, and nothing is paid.
"""

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from service.api.buckets import Buckets
from service.api.faults import HostUnknown, KeyMissing, KeyUnknown, RateLimited, ScopeMissing
from service.api.plain import Headers
from service.api.record import Record
from service.engine.fairness import Share
from service.keys import Key, Keyring, KeysWrong, read_keys
from service.settings import Settings

HEALTH = frozenset({"/livez", "/readyz"})
"""Probes come by address, without a key, and as often as they like."""
OPEN = HEALTH | {"/metrics", "/", "/docs", "/openapi.json"}
"""No key is asked for: states, series and static pages, those below PAGES among them."""
PAGES = "/playground/"
REREAD_S = 2.0
"""Seconds between looks whether the file of keys has changed."""

_log = logging.getLogger("ganymede")


class Caller(NamedTuple):
    """Whose request it is: a key's name, or an address."""

    name: str
    key: Key | None


class Guard:
    """What the settings ask of every request.

    Args:
        settings: `keys`, `keys_file`, `rate_per_s`, `rate_burst`, `fair`, `hosts`, `forwarded`.
        clock: `time.monotonic`; tests put in one of their own.

    Raises:
        KeysWrong, OSError: the keys cannot be read.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._buckets = Buckets()
        self._hosts = tuple(host.lower() for host in settings.hosts)
        listed = read_keys("" if settings.keys is None else settings.keys.get_secret_value(), "keys")
        self._keyring = Keyring(listed, settings.keys_file) if settings.with_keys else None
        self._reread_s = clock() + REREAD_S
        if self._keyring is not None and not len(self._keyring):
            _log.warning("keys are asked for, and there is none: every request will be refused")

    @classmethod
    def of(cls, settings: Settings) -> "Guard | None":
        """A guard, where any setting asks for one."""
        asked = settings.with_keys or settings.rate_per_s is not None or settings.fair or settings.hosts
        return cls(settings) if asked else None

    def look(self, record: Record, path: str, headers: Headers, peer: object) -> None:
        """Let a request in, noting on its record who asks, or not.

        Args:
            path: by which it is routed, so not percent-encoded as the record's is.
            peer: the connection's other end, (host, port).

        Raises:
            HostUnknown, KeyMissing, KeyUnknown, ScopeMissing, RateLimited.
        """
        if path in HEALTH:
            return
        if self._hosts and path != "/metrics":  # which is scraped by addresses that change
            self._look_at_host(headers)
        if path in OPEN or path.startswith(PAGES) or record.method == "OPTIONS":
            return
        needed = "admin" if record.method == "POST" and path.startswith("/models/") else "generate"
        caller = self._caller(headers, peer, needed)
        record.caller = caller.name
        self._look_at_rate(caller)
        if self._settings.fair:
            record.share = self._share_of(caller)

    def _look_at_host(self, headers: Headers) -> None:
        """RFC 9110, 7.2; `*.example.org` allows any name below it."""
        given = (headers.first(b"host") or b"").decode("latin-1").lower()
        before, colon, port = given.rpartition(":")
        name = before if colon and (not port or port.isdigit()) else given
        for host in self._hosts:
            if name == host or (host.startswith("*.") and name.endswith(host[1:]) and len(name) > len(host) - 1):
                return
        raise HostUnknown("this server does not answer under that name", field="Host")

    def _caller(self, headers: Headers, peer: object, needed: str) -> Caller:
        if self._keyring is None:
            return Caller(self._address(headers, peer), None)
        self._reread()
        secret = headers.first(b"x-api-key")
        if secret is None:
            kind, _, given = (headers.first(b"authorization") or b"").partition(b" ")
            secret = given.strip() if kind.lower() == b"bearer" else None
        if not secret:
            raise KeyMissing("a key is needed: Authorization: Bearer <key>, or X-API-Key: <key>", field="Authorization")
        key = self._keyring.find(secret)
        if key is None:
            raise KeyUnknown("this key is not known here", field="Authorization")
        if needed not in key.scopes:
            raise ScopeMissing(f"the key {key.name} has not the scope {needed}", field="Authorization")
        return Caller(key.name, key)

    def _address(self, headers: Headers, peer: object) -> str:
        """Where a request is from: what the balancer before this server wrote last, where there is one."""
        if self._settings.forwarded:
            told = headers.joined(b"x-forwarded-for")
            if told:
                return told.rpartition(",")[2].strip()[:64]
        return str(peer[0]) if isinstance(peer, tuple | list) and peer else "local"

    def _look_at_rate(self, caller: Caller) -> None:
        key, settings = caller.key, self._settings
        rate = settings.rate_per_s if key is None or key.rate_per_s is None else key.rate_per_s
        if rate is None:
            return
        burst = settings.rate_burst if key is None or key.burst is None else key.burst
        wait_s = self._buckets.take(caller.name, self._clock(), rate, max(1.0, rate if burst is None else burst))
        if wait_s:
            detail = f"{caller.name} may ask {rate:g} times a second; again in {wait_s:.3f} s"
            raise RateLimited(detail, retry_after_s=wait_s, reason="rate_limit")

    def _share_of(self, caller: Caller) -> Share:
        if caller.key is not None:
            return Share(caller.name, caller.key.share)
        return Share(caller.name)

    def _reread(self) -> None:
        assert self._keyring is not None
        now_s = self._clock()
        if now_s < self._reread_s:
            return
        self._reread_s = now_s + REREAD_S
        try:
            if self._keyring.refresh():
                _log.info("the keys were read again: %d", len(self._keyring))
        except (KeysWrong, OSError) as error:
            _log.error("the keys stay as they were: %s", error)
