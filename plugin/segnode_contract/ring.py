"""The doorbell between plugin and workers: how Celery is set up, and what a message says."""

from __future__ import annotations

from typing import Any

TASK = "segnode.ring"
"""Name of the one task. Its only argument is a lane; what to do stands in the ledger."""

VISIBILITY_S = 3600


def celery_settings(broker_url: str) -> dict[str, Any]:
    """Return Celery's settings, the same for those who ring and those who hear."""
    settings: dict[str, Any] = {
        "broker_url": broker_url,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            "global_keyprefix": "segnode:",
            "visibility_timeout": VISIBILITY_S,
            "socket_connect_timeout": 2,
            "socket_timeout": 30,
            "socket_keepalive": True,
        },
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_ignore_result": True,
        "task_acks_late": True,
        # a ring may be lost or doubled without harm: the ledger knows which jobs wait
        "task_reject_on_worker_lost": False,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        "task_publish_retry": False,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
    }
    if broker_url.startswith("rediss:"):
        # what the URL says counts before this; where it says nothing, Celery would trust anybody
        settings["broker_use_ssl"] = {"ssl_cert_reqs": "required"}
    return settings
