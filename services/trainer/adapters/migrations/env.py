"""Run by Alembic."""

from alembic import context

from services.kit.database import run_env

run_env(context)
