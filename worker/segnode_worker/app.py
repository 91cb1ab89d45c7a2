"""The Celery application: `celery -A segnode_worker.app worker -Q LANE`."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from segnode_contract.ring import celery_settings
from segnode_contract.settings import load_connections


def _settings() -> dict[str, Any]:
    # read when Celery first asks, so that an import has no effects
    return celery_settings(load_connections(os.environ).broker_url)


app = Celery("segnode", include=["segnode_worker.tasks"])
app.add_defaults(_settings)
