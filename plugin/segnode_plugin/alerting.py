"""Looks at the node from time to time, and tells people when it needs them."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from segnode_contract.errors import NotTold
from segnode_contract.ledger import Ledger
from segnode_contract.ledger.alerts import AlertLedger
from segnode_contract.ledger.node_state import read_state
from segnode_contract.settings import Settings
from segnode_contract.troubles import NodeState, Trouble, troubles
from segnode_plugin.notice import Notice
from segnode_plugin.telling import Channel

log = logging.getLogger(__name__)

_LOOK_S = 10.0
_BACK_OFF_S = (30.0, 60.0, 300.0, 900.0)
"""Waits after a channel failed so often in a row; the last is repeated."""


class Alerting:
    """A step of the service. Two of them side by side tell nothing twice.

    Parameters
    ----------
    channels
        Without any nothing is looked at.
    free_mb
        Gives the room for the node's data, None for unknown.
    """

    def __init__(
        self,
        ledger: Ledger,
        settings: Settings,
        channels: Sequence[Channel],
        free_mb: Callable[[], float | None],
    ) -> None:
        self._ledger = ledger
        self._alerts = AlertLedger(ledger)
        self._settings = settings
        self._channels = channels
        self._free_mb = free_mb
        self._looks_at = 0.0
        self._tidied = False
        self._failures = {channel.name: 0 for channel in channels}
        self._tries_at = dict.fromkeys(self._failures, 0.0)

    def tick(self) -> None:
        """Look, and tell what is due, each ten seconds.

        Raises
        ------
        LedgerUnavailable
            If nothing can be looked at, or noted.
        """
        if time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + _LOOK_S
        if not self._tidied:
            self._alerts.keep([channel.name for channel in self._channels])
            self._tidied = True
        if not self._channels:
            return
        state = read_state(self._ledger, self._settings.background, self._free_mb())
        found = troubles(state, self._settings.alerts)
        for channel in self._channels:
            if time.monotonic() >= self._tries_at[channel.name]:
                self._tell(channel, found, state)

    def _tell(self, channel: Channel, found: Sequence[Trouble], state: NodeState) -> None:
        quiet_s, node = self._settings.alerts.quiet_s, self._settings.node.name
        failures = self._failures[channel.name]
        wait_s = _BACK_OFF_S[min(failures, len(_BACK_OFF_S) - 1)]
        # as if it failed already: whatever goes wrong here is not repeated each ten seconds
        self._failures[channel.name], self._tries_at[channel.name] = (
            failures + 1,
            time.monotonic() + wait_s,
        )
        try:
            with self._alerts.telling(channel.name, found, state.now, quiet_s) as news:
                if news:
                    channel.tell(Notice(node=node, alerts=tuple(news), quiet_s=quiet_s))
        except NotTold as error:
            fields = {"channel": channel.name, "code": error.code, "again_s": f"{wait_s:g}"}
            log.warning("alert not told: %s", error.sentence, extra=fields)
            return
        self._failures[channel.name] = 0
        self._tries_at[channel.name] = 0.0
        for each in news:
            said = {"channel": channel.name, "alert": each.name, "state": each.state}
            log.info("alert told", extra=said)


def free_mb_of(folder: Path) -> Callable[[], float | None]:
    """Return what gives the free space of a folder's disk, None where it cannot be read."""

    def free_mb() -> float | None:
        try:
            return shutil.disk_usage(folder).free / (1 << 20)
        except OSError:  # it is not there, say; the rest is looked at all the same
            return None

    return free_mb
