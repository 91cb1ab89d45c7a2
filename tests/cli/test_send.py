"""`segnode send` against a peer that answers at once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import CTImageStorage

from segnode_cli.ct_series import ct_series
from segnode_cli.send import Peer, send_paths


class NeverClosed(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.set()

    def clear(self) -> None: ...


def test_no_answer_is_lost_to_pynetdicoms_own_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = ct_series(np.zeros((200, 8, 8), np.int16), spacing_mm=(1.0, 1.0, 1.0), seed="s")
    for number, image in enumerate(series):
        image.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    peer = AE(ae_title="PEER")
    peer.add_supported_context(CTImageStorage)
    server = peer.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)]
    )
    # that thread never pauses, though it says so: what is rare elsewhere comes soon
    for name, value in (("_is_paused", True), ("_reactor_checkpoint", NeverClosed())):
        always = property(lambda _, value=value: value, lambda *_: None)
        monkeypatch.setattr(Association, name, always, raising=False)
    try:
        port = server.server_address[1]
        sent = send_paths([tmp_path], Peer(aet="PEER", host="127.0.0.1", port=port))
    finally:
        server.shutdown()
    assert (sent.stored, sent.refused) == (200, 0)
