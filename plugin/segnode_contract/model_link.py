"""Messages between a worker child and the model process: JSON, with file descriptors beside it."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("!I")
_LIMIT = 16 << 20


def send(link: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one message; `descriptors` (of memfds) travel with it."""
    body = json.dumps(message).encode()
    socket.send_fds(link, [_LENGTH.pack(len(body))], list(descriptors))
    link.sendall(body)


def receive(link: socket.socket, descriptors: int = 0) -> tuple[dict[str, Any], list[int]]:
    """Return the next message and up to `descriptors` file descriptors.

    Raises
    ------
    EOFError
        If the other side is gone.
    TimeoutError
        If nothing comes within the timeout of `link`.
    """
    try:
        head, received, _, _ = socket.recv_fds(link, _LENGTH.size, descriptors)
        while len(head) < _LENGTH.size:
            head += _some(link, _LENGTH.size - len(head))
        (length,) = _LENGTH.unpack(head)
        if length > _LIMIT:
            raise EOFError(f"a message of {length} bytes")
        body = bytearray()
        while len(body) < length:
            body += _some(link, length - len(body))
    except ConnectionError as error:
        raise EOFError("the other side is gone") from error
    return json.loads(body), received


def _some(link: socket.socket, wanted: int) -> bytes:
    part = link.recv(wanted)
    if not part:
        raise EOFError("the other side is gone")
    return part
