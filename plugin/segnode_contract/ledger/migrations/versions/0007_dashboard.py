"""What the dashboard shows: arrivals, modalities, revisions, workers' reports, tallies, alerts."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("series", sa.Column("first_instance_at", sa.Double(), nullable=True))
    op.add_column("job", sa.Column("first_instance_at", sa.Double(), nullable=True))
    op.add_column(
        "job", sa.Column("modality", sa.String(length=16), server_default="", nullable=False)
    )
    op.add_column(
        "job", sa.Column("base_key", sa.String(length=64), server_default="", nullable=False)
    )
    op.add_column("job", sa.Column("revision", sa.Integer(), server_default="0", nullable=False))
    op.execute("UPDATE job SET base_key = key")
    op.create_index("job_base", "job", ["base_key", "revision"])
    op.create_index("job_updated", "job", ["updated_at"])
    op.create_index("job_state_created", "job", ["state", "created_at"])
    op.create_index("job_model_created", "job", ["model", "created_at"])
    op.create_index("job_route_created", "job", ["route", "created_at"])
    op.create_index("job_code_created", "job", ["error_code", "created_at"])
    op.create_index("job_modality_created", "job", ["modality", "created_at"])
    op.add_column("worker", sa.Column("report", sa.JSON(), nullable=True))
    op.add_column(
        "event", sa.Column("person", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.create_index("event_person", "event", ["person", "seq"])
    op.create_table(
        "tally",
        sa.Column("day", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("measure", sa.String(length=32), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("day", "model", "measure", "bucket"),
    )
    op.create_table(
        "alert",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("raised_at", sa.Double(), nullable=False),
        sa.Column("over_at", sa.Double(), nullable=True),
        sa.Column("told_at", sa.Double(), nullable=True),
        sa.Column("claimed_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("name"),
    )
