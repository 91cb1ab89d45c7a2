"""An association to a DICOM peer, for C-STORE and C-ECHO (PS3.4 A, B; PS3.7 9.1.1, 9.1.5)."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from segnode_contract.errors import PeerRefused, PeerUnavailable
from segnode_contract.form import Form

Kind = tuple[str, str]
"""SOP class and transfer syntax of an object, by their UIDs."""

LABEL_MAP = Form.LABELMAP.storage
_NAMES = {LABEL_MAP: "Label Map Segmentation Storage"}  # PS3.6 A; pydicom 3 lacks it
MOST_CONTEXTS = 128
"""PS3.8 9.3.2.2: odd numbers from 1 to 255."""
_CONNECT_S = 10
_ANSWER_S = 120
"""How long a peer may be silent: it may write a large object to a slow disk first."""
_PLAIN = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
HAD_IT = "it had the object already"
_DUPLICATE = 0x0111
_PROCESSING_FAILURE = 0x0110
_WORDS = {
    0x0122: "it does not support the SOP class",
    0x0124: "we are not authorised there",
}
_RANGES = {
    0xA700: "it is out of resources",
    0xA900: "the object does not match its SOP class",
    0xC000: "it cannot understand the object",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet} at {self.host}:{self.port}"


class Link:
    """An established association."""

    def __init__(self, peer: Peer, association: Association) -> None:
        self.peer = peer
        self._association = association

    def takes(self, kind: Kind) -> bool:
        """Return whether a presentation context was accepted that can carry such an object."""
        sop_class, syntax = kind
        wanted = _PLAIN if syntax in _PLAIN else (syntax,)
        return any(
            context.abstract_syntax == sop_class and context.transfer_syntax[0] in wanted
            for context in self._association.accepted_contexts
        )

    def store(self, instance: Dataset) -> str:
        """Send one object, and return what the peer said of it, empty for plain success.

        Raises
        ------
        PeerRefused
            If the peer did not take it and never will; with ``sop-class-refused`` if no
            presentation context for it was accepted.
        PeerUnavailable
            If the association is lost, or the peer says that it may take it later.
        """
        kind = kind_of(instance)
        if not self._association.is_established:
            raise self._lost()
        if not self.takes(kind):
            raise refusal(self.peer, kind)
        try:
            status = self._association.send_c_store(instance)
        except (ValueError, AttributeError, OSError) as error:
            # the text may quote what the object says
            raise PeerRefused(
                f"An object of {name_of(kind[0])} cannot be encoded for {self.peer} "
                f"({type(error).__name__}); it is broken."
            ) from error
        except RuntimeError as error:
            raise self._lost() from error  # it broke after we looked
        if "Status" not in status:
            raise self._lost()
        return self._judged(int(status.Status), name_of(kind[0]))

    def echo(self) -> None:
        """Ask whether the peer is there (C-ECHO).

        Raises
        ------
        PeerUnavailable
            If it does not answer as it should.
        """
        status = self._association.send_c_echo()
        if "Status" not in status or status.Status != 0:
            raise PeerUnavailable(f"{self.peer} does not answer to C-ECHO; see its log.")

    def _judged(self, code: int, sop_class: str) -> str:
        """Return what a status says of an object that was taken (PS3.4 B.2.3, PS3.7 C)."""
        if code == 0:
            return ""
        if code == _DUPLICATE:
            return HAD_IT
        if code & 0xF000 == 0xB000:
            return warned(code)
        meaning = _WORDS.get(code) or _RANGES.get(code & 0xFF00) or _RANGES.get(code & 0xF000)
        said = f"{code:04X}H" + (f": {meaning}" if meaning else "")
        if code & 0xFF00 == 0xA700 or code == _PROCESSING_FAILURE:
            raise PeerUnavailable(
                f"{self.peer} did not take an object of {sop_class} now ({said}); see its log, "
                "and whether its disk is full.",
                code="peer-busy",
            )
        raise PeerRefused(
            f"{self.peer} refused an object of {sop_class} ({said}); its log says why."
        )

    def _lost(self) -> PeerUnavailable:
        return PeerUnavailable(f"{self.peer} broke the association off; see its log.")


@contextmanager
def associated(peer: Peer, calling: str, kinds: Iterable[Kind]) -> Iterator[Link]:
    """Open an association for these kinds of objects inside the ``with``.

    Each is proposed in its own transfer syntax, and what is not compressed in Implicit and Explicit
    VR Little Endian too, each in a presentation context of its own.

    Raises
    ------
    PeerRefused
        If the peer accepts no presentation context.
    PeerUnavailable
        If it does not answer, or refuses the association.
    """
    kinds = list(kinds)
    entity = AE(ae_title=calling)
    entity.connection_timeout = _CONNECT_S
    entity.dimse_timeout = entity.network_timeout = _ANSWER_S
    entity.requested_contexts = [build_context(*kind) for kind in proposed(kinds)]
    association = entity.associate(
        peer.host, peer.port, ae_title=peer.aet, evt_handlers=[(evt.EVT_CONN_OPEN, _at_once)]
    )
    if not association.is_established:
        raise _not_established(association, peer, calling, kinds)
    _keep_answers(association)
    try:
        yield Link(peer, association)
    finally:
        if association.is_established:
            association.release()


def proposed(kinds: Iterable[Kind]) -> list[Kind]:
    """Return the presentation contexts to ask for, as many as there can be."""
    found: dict[Kind, None] = {}
    for sop_class, syntax in kinds:
        found[sop_class, syntax] = None
    for sop_class, syntax in list(found):
        if syntax in _PLAIN:
            found |= {(sop_class, str(plain)): None for plain in _PLAIN}
    return list(found)[:MOST_CONTEXTS]


def kind_of(instance: Dataset) -> Kind:
    """Return the kind of an object that was read from a Part 10 file."""
    return str(instance.SOPClassUID), str(instance.file_meta.TransferSyntaxUID)


def name_of(uid: str) -> str:
    """Return what the standard calls a SOP class or transfer syntax; the UID where unknown."""
    return _NAMES.get(uid) or str(UID(uid).name)


def warned(code: int) -> str:
    """Return what is noted of an object that was taken with a warning."""
    return f"taken with the warning {code:04X}H"


def refusal(peer: object, kind: Kind) -> PeerRefused:
    """Return the error for a kind of object that a peer accepted no presentation context for."""
    sop_class, syntax = map(name_of, kind)
    instead = ', or have none made: form = "BINARY" in [results]' if kind[0] == LABEL_MAP else ""
    return PeerRefused(
        f"{peer} does not accept {sop_class} ({kind[0]}) in {syntax}; allow this SOP class and "
        f"transfer syntax there, for our AE title{instead}.",
        code="sop-class-refused",
    )


def _not_established(
    association: Association, peer: Peer, calling: str, kinds: list[Kind]
) -> PeerRefused | PeerUnavailable:
    if association.is_rejected:
        return PeerUnavailable(
            f"{peer} refused the association; it must know our AE title {calling}, and its own "
            f"must be {peer.aet}.",
            code="peer-rejected",
        )
    if association.rejected_contexts and kinds:
        return refusal(peer, kinds[0])
    return PeerUnavailable(f"{peer} does not answer; is it running, and are host and port right?")


def _keep_answers(association: Association) -> None:
    """Give back answers that pynetdicom's own thread takes by mistake.

    `send_c_store` has that thread pause, and can take an earlier pause for the one that it asked
    for (3.0.4). The thread then drops the answer as unexpected, and the sender waits for half a
    minute and gives up.
    """
    serve = association._serve_request

    def kept(message: Any, context_id: int) -> None:
        if message.is_valid_request:
            serve(message, context_id)
        else:
            association.dimse.msg_queue.put((context_id, message))

    vars(association)["_serve_request"] = kept


def _at_once(event: evt.Event) -> None:
    """Send each part of a message as it comes: the peer acknowledges it 40 ms late (Nagle)."""
    transport = event.assoc.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
