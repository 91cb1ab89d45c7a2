"""The tables. Times are seconds since 1970, UTC, by the database's clock."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData()

_KEY = String(64)
_UID = String(64)
_SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up INTEGER keys only

archive = Table(
    "archive",
    metadata,
    Column("archive_id", String(36), primary_key=True),
    Column("last_change", BigInteger, nullable=False),
    Column("seen_at", Double, nullable=False),
)

series = Table(
    "series",
    metadata,
    Column("archive_id", ForeignKey("archive.archive_id"), primary_key=True),
    Column("orthanc_id", String(44), primary_key=True),
    Column("first_instance_at", Double),  # of those that came since it was decided before
    Column("last_instance_at", Double, nullable=False),
    Column("decided_at", Double),
    Column("study_uid", _UID),
    Column("series_uid", _UID),
    Column("instance_count", Integer),
    Column("decision", JSON),
    Column("backlog", Boolean, nullable=False, server_default=false()),
    Index("series_undecided", "archive_id", "decided_at"),
    Index("series_study", "study_uid"),
)

study = Table(
    "study",
    metadata,
    Column("archive_id", ForeignKey("archive.archive_id"), primary_key=True),
    Column("orthanc_id", String(44), primary_key=True),
    Column("changed_at", Double, nullable=False),
    Column("decided_at", Double),
    Index("study_undecided", "archive_id", "decided_at"),
)

model = Table(
    "model",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("digest", _KEY, primary_key=True),
    Column("version", String(32), nullable=False),
    Column("card", Text, nullable=False),
    Column("worker", String(128), nullable=False),
    Column("first_announced_at", Double, nullable=False),
    Column("announced_at", Double, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("report", JSON),
)

shared = Table(
    "shared",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", JSON, nullable=False),
)

lane = Table(
    "lane",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("passed_over", Integer, nullable=False),  # routine jobs taken since a background one
)

job = Table(
    "job",
    metadata,
    Column("key", _KEY, primary_key=True),
    # the key of its revision 0; each later one takes the place of one that was withdrawn
    Column("base_key", _KEY, nullable=False, server_default=""),
    Column("revision", Integer, nullable=False, server_default=text("0")),
    Column("archive_id", ForeignKey("archive.archive_id"), nullable=False),
    Column("study_uid", _UID, nullable=False),
    Column("series_uids", Text, nullable=False),
    Column("content", _KEY, nullable=False),
    Column("instance_count", Integer, nullable=False),
    Column("modality", String(16), nullable=False, server_default=""),
    Column("first_instance_at", Double),
    Column("last_instance_at", Double, nullable=False),
    Column("route", String(64), nullable=False),
    Column("route_rank", Integer, nullable=False),
    Column("model", String(64), nullable=False),
    Column("model_version", String(32), nullable=False),
    Column("model_digest", _KEY, nullable=False),
    Column("lane", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("tried_since", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("lease_owner", String(128)),
    Column("lease_epoch", BigInteger, nullable=False),
    Column("lease_until", Double),
    Column("error_code", String(64)),
    Column("error_sentence", Text),
    Column("error_stage", String(16)),
    Column("progress", Double),  # of the model that runs, 0 to 1
    Column("priority", Integer, nullable=False, server_default=text("1")),
    Column("roles", Text, nullable=False, server_default=""),
    Column("builds_on", _KEY, nullable=False, server_default="", index=True),
    Column("shadow", Boolean, nullable=False, server_default=false()),
    Column("form", String(16), nullable=False, server_default="BINARY"),
    Column("input_digest", _KEY),
    Column("findings", JSON),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Index("job_claim", "lane", "state", "priority", "created_at"),
    Index("job_state", "state", "study_uid"),
    Index("job_study", "study_uid"),
    Index("job_series", "series_uids", "model"),
    Index("job_created", "created_at"),
    Index("job_base", "base_key", "revision"),
    Index("job_updated", "updated_at"),
    Index("job_state_created", "state", "created_at"),
    Index("job_model_created", "model", "created_at"),
    Index("job_route_created", "route", "created_at"),
    Index("job_code_created", "error_code", "created_at"),
    Index("job_modality_created", "modality", "created_at"),
)

run = Table(
    "run",
    metadata,
    Column("id", _SERIAL, primary_key=True),
    Column("job_key", ForeignKey("job.key"), nullable=False, index=True),
    Column("epoch", BigInteger, nullable=False),
    Column("worker", String(128), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("outcome", String(16)),
    Column("error_code", String(64)),
    Column("peak_mb", Integer),  # as the child itself says at the end: none from one that was lost
)

stage = Table(
    "stage",
    metadata,
    Column("id", _SERIAL, primary_key=True),
    Column("run_id", ForeignKey("run.id"), nullable=False, index=True),
    Column("stage", String(16), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seconds", Double),
)

event = Table(
    "event",
    metadata,
    Column("seq", _SERIAL, primary_key=True),
    Column("job_key", ForeignKey("job.key"), index=True),
    Column("at", Double, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("detail", Text, nullable=False),
    Column("person", Boolean, nullable=False, server_default=false()),  # somebody did it by hand
    Index("event_person", "person", "seq"),
)

result = Table(
    "result",
    metadata,
    Column("instance_uid", _UID, primary_key=True),
    Column("job_key", ForeignKey("job.key"), nullable=False, index=True),
    Column("role", String(16), nullable=False),
    Column("series_uid", _UID, nullable=False, index=True),
    Column("digest", _KEY, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("stored_at", Double),
    Column("confirmed_at", Double),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", _SERIAL, primary_key=True),
    Column("job_key", ForeignKey("job.key"), nullable=False),
    Column("lane", String(64), nullable=False),
    Column("due_at", Double, nullable=False),
    Column("published_at", Double),
    Index("outbox_due", "published_at", "due_at"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("job_key", ForeignKey("job.key"), primary_key=True),
    Column("destination", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("tried_since", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("losses", Integer, nullable=False),  # senders that ended in the middle of it
    Column("lease_owner", String(128)),
    Column("lease_epoch", BigInteger, nullable=False),
    Column("lease_until", Double),
    Column("error_code", String(64)),
    Column("error_sentence", Text),
    Column("objects", Integer),  # that the destination took, of the last try
    Column("bytes", BigInteger),
    Column("note", Text),  # what it said of objects that it took
    Column("updated_at", Double, nullable=False),
    Index("delivery_due", "state", "destination", "due_at"),
)

# How often something took so long on a day: counted as it happens, so that no page has to read
# every stage of every run.
tally = Table(
    "tally",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False),  # since 1970, UTC
    Column("model", String(64), primary_key=True),
    Column("measure", String(32), primary_key=True),
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("count", Integer, nullable=False),
)

alert = Table(
    "alert",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("sentence", Text, nullable=False),
    Column("raised_at", Double, nullable=False),
    Column("over_at", Double),
    Column("told_at", Double),
    Column("claimed_at", Double),  # somebody tells it just now
)
