"""Studies that wait for a decision; priorities, chains and shadow runs of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "study",
        sa.Column("archive_id", sa.String(length=36), nullable=False),
        sa.Column("orthanc_id", sa.String(length=44), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("decided_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["archive_id"], ["archive.archive_id"]),
        sa.PrimaryKeyConstraint("archive_id", "orthanc_id"),
    )
    op.create_index("study_undecided", "study", ["archive_id", "decided_at"])
    op.create_table(
        "lane",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("passed_over", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    no = sa.false()
    op.add_column("series", sa.Column("backlog", sa.Boolean(), nullable=False, server_default=no))
    for column in (
        sa.Column("priority", sa.Integer(), nullable=False, server_default=sa.text("1")),
        sa.Column("roles", sa.Text(), nullable=False, server_default=""),
        sa.Column("builds_on", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("shadow", sa.Boolean(), nullable=False, server_default=no),
    ):
        op.add_column("job", column)
    op.create_index("ix_job_builds_on", "job", ["builds_on"])
    op.drop_index("job_claim", "job")
    op.create_index("job_claim", "job", ["lane", "state", "priority", "created_at"])
