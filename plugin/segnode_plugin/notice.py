"""What is said to people of several alerts at once."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from segnode_contract.standing import LASTING, OVER, RAISED, News

_STATES = {LASTING: "lasts", OVER: "over"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message."""

    node: str
    alerts: tuple[News, ...]
    quiet_s: float

    @property
    def subject(self) -> str:
        """``[node] 2 alerts, 1 over``."""
        over = sum(alert.state == OVER for alert in self.alerts)
        held = len(self.alerts) - over
        what = f"{held} alert" if held == 1 else f"{held} alerts"
        said = [what] if held else []
        if over:
            said.append(f"{over} over" if held else f"{over} alert{'' if over == 1 else 's'} over")
        return _line(f"[{self.node}] {', '.join(said)}")

    @property
    def text(self) -> str:
        """Lines for people: each alert with its state and since when it holds."""
        parts = [_paragraph(alert) for alert in self.alerts]
        minutes = self.quiet_s / 60
        parts.append(
            f"Told by segnode on node {_line(self.node)}. An alert that lasts or comes back is "
            f"told again after {minutes:g} min, not before."
        )
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return what a webhook gets; `text` is what chat services show."""
        alerts = [
            {
                "name": alert.name,
                "state": alert.state,
                "sentence": alert.sentence,
                "since": datetime.fromtimestamp(alert.since, UTC).isoformat(timespec="seconds"),
            }
            for alert in self.alerts
        ]
        return {"node": self.node, "alerts": alerts, "text": f"{self.subject}\n\n{self.text}"}


def trial(node: str, quiet_s: float, now: float) -> Notice:
    """Return a notice for `segnode doctor --alert`."""
    sentence = "This is a trial, sent by hand: nothing is wrong, and nothing is to be done."
    news = News(name="trial", state=RAISED, sentence=sentence, since=now)
    return Notice(node=node, alerts=(news,), quiet_s=quiet_s)


def _paragraph(alert: News) -> str:
    state = _STATES.get(alert.state)
    since = datetime.fromtimestamp(alert.since).astimezone().isoformat(" ", "seconds")
    head = f"{alert.name} ({state}, since {since})" if state else f"{alert.name} (since {since})"
    return f"{head}\n{_line(alert.sentence)}"


def _line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
