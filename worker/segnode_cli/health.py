"""Whether the servers of a node answer, for those who wait until they do."""

from __future__ import annotations

import urllib.error
import urllib.request
from base64 import b64encode

import redis

from segnode_cli.node import Node
from segnode_contract.errors import SegnodeError
from segnode_contract.ledger import Ledger, LedgerView
from segnode_worker.archive import trust_in


def redis_answers(node: Node) -> bool:
    """Return whether Redis takes our password."""
    client = redis.Redis.from_url(node.environment()["SEGNODE_BROKER_URL"])
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def pages_answer(node: Node) -> bool:
    """Return whether Orthanc is up and the plugin's pages with it."""
    word = b64encode(":".join(node.login("viewer")).encode()).decode()
    request = urllib.request.Request(  # noqa: S310 # our own address, http or https
        f"{node.url}/segnode/health", headers={"Authorization": f"Basic {word}"}
    )
    trust = trust_in(node.certificate)
    try:
        with urllib.request.urlopen(request, timeout=2, context=trust) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def workers_answer(node: Node, since: float, count: int) -> bool:
    """Return whether so many workers started after `since` (Unix seconds) and told their models."""
    try:
        ledger = Ledger.open(node.environment()["SEGNODE_LEDGER_URL"])
        try:
            workers = LedgerView(ledger).workers()
        finally:
            ledger.close()
    except SegnodeError:
        return False
    return sum(worker.started_at >= since - 1 for worker in workers) >= count
