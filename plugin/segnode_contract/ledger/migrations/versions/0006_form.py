"""In which form a job writes its segmentation."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column(
        "job",
        sa.Column("form", sa.String(length=16), server_default="BINARY", nullable=False),
    )
