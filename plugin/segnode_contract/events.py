"""Log lines: an event and its fields, on stderr. Never a patient's name."""

from __future__ import annotations

import logging

_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class EventLines(logging.Formatter):
    """``2026-11-24 10:00:00 INFO job queued job_key=…``."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in vars(record).items() if k not in _ORDINARY}
        words = [self.formatTime(record, "%Y-%m-%d %H:%M:%S"), record.levelname]
        words += [record.getMessage(), *(f"{key}={value}" for key, value in fields.items())]
        return " ".join(words).replace("\n", " ").replace("\r", " ")


def log_events() -> None:
    """Send our own events to stderr; an entry point calls this once."""
    handler = logging.StreamHandler()
    handler.setFormatter(EventLines())
    ours = [logging.getLogger(f"segnode_{part}") for part in ("plugin", "worker", "models", "cli")]
    for logger in ours:
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
