"""How a download was asked for"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("downloads", sa.Column("options", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("downloads", "options")
