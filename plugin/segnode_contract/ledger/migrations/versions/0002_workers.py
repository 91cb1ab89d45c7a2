"""Workers that say how they are; since when a model is known, and a job is tried."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "worker",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    for table, new, old in (
        ("model", "first_announced_at", "announced_at"),
        ("job", "tried_since", "created_at"),
    ):
        op.add_column(table, sa.Column(new, sa.Double(), nullable=True))
        op.execute(f"update {table} set {new} = {old}")  # noqa: S608 # names of ours
        with op.batch_alter_table(table) as changed:
            changed.alter_column(new, existing_type=sa.Double(), nullable=False)
    op.create_index("job_state", "job", ["state", "study_uid"])
