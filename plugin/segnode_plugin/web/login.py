"""The login of pages that no Orthanc stands before: HTTP Basic (RFC 7617), on this machine only."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from werkzeug.datastructures import Authorization
from werkzeug.wrappers import Response

log = logging.getLogger(__name__)

Application = Callable[[dict[str, Any], Any], Iterable[bytes]]

_NAMES = ("127.0.0.1", "localhost", "[::1]")
_CHALLENGE = 'Basic realm="segnode", charset="UTF-8"'
_TRIES = 10
_LOCK_S = 300.0
_STRANGER = ""
"""All names that nobody has count as one, so that what is remembered stays small."""


class Login:
    """WSGI: hand a request on to the pages with its user's name, or refuse it in a sentence.

    Parameters
    ----------
    app
        The pages, which decide what each role may do.
    passwords
        Of each user that may log in.
    clock
        Gives seconds that only grow.
    """

    def __init__(
        self,
        app: Application,
        passwords: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._passwords = passwords
        self._nobodys = secrets.token_urlsafe()
        self._wrong = WrongTries(clock=clock)
        self._deciding = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not _is_ours(environ.get("HTTP_HOST", ""), environ["SERVER_PORT"]):
            # another site's name may lead here too (DNS rebinding): its pages would read ours
            answer = _refusal(403, f"Ask for http://127.0.0.1:{environ['SERVER_PORT']}/segnode/.")
            return answer(environ, start_response)
        user = self._user(environ.pop("HTTP_AUTHORIZATION", None))
        if isinstance(user, Response):
            return user(environ, start_response)
        return self._app({**environ, "REMOTE_USER": user}, start_response)

    def _user(self, header: str | None) -> str | Response:
        """Return the user's name if the password is right, else what to answer."""
        sent = _sent(header)
        if sent is None:
            return _refusal(401, "Log in as a user of this node; `segnode up` told the passwords.")
        name = sent.username or _STRANGER
        name = name if name in self._passwords else _STRANGER
        password = self._passwords.get(name, self._nobodys)
        with self._deciding:  # or tries at the same moment would all be the tenth
            left_s = self._wrong.locked_s(name)
            if left_s > 0:
                return _locked(left_s)
            if hmac.compare_digest((sent.password or "").encode(), password.encode()):
                return name
            self._wrong.count(name)
        return _refusal(401, "User and password do not belong together; try again.")


@dataclass(slots=True, kw_only=True)
class WrongTries:
    """Counts wrong passwords by user.

    Not by address: all of them are of this machine, where anybody may take any in 127.0.0.0/8.
    """

    clock: Callable[[], float]
    _seen: dict[str, list[float]] = field(default_factory=dict)

    def locked_s(self, name: str) -> float:
        """Return for how long a user cannot log in; 0 for not at all."""
        tries = self._seen.get(name, [])
        return max(tries[-1] + _LOCK_S - self.clock(), 0) if len(tries) == _TRIES else 0

    def count(self, name: str) -> None:
        """Add one; a right password takes none away, since whose page is open sends it all day."""
        now = self.clock()
        self._seen[name] = [at for at in self._seen.get(name, []) if now - at < _LOCK_S] + [now]
        if len(self._seen[name]) == _TRIES:
            log.warning("login locked", extra={"user": name or "unknown"})


def _sent(header: str | None) -> Authorization | None:
    """Return the user and password in a header, None where it holds none."""
    try:
        found = Authorization.from_header(header)
    except ValueError:  # what is no base64 may be no ASCII either
        return None
    return found if found is not None and found.type == "basic" else None


def _is_ours(host: str, port: str) -> bool:
    """Return whether the request was made to this machine by a name of its own."""
    ours = {f"{name}:{port}" for name in _NAMES} | (set(_NAMES) if port == "80" else set())
    return host.lower() in ours


def _locked(left_s: float) -> Response:
    minutes = max(round(left_s / 60), 1)
    answer = _refusal(
        429, f"There were {_TRIES} wrong passwords for this user; try again in {minutes} min."
    )
    answer.headers["Retry-After"] = str(round(left_s))
    return answer


def _refusal(status: int, sentence: str) -> Response:
    answer = Response(f"{sentence}\n", status=status, content_type="text/plain; charset=utf-8")
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Content-Type-Options"] = "nosniff"
    answer.headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
    if status == 401:
        answer.headers["WWW-Authenticate"] = _CHALLENGE
    return answer
