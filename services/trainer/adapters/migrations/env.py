"""Alembic runs this; the rest is in the kit."""

from alembic import context

from services.kit.database import run_env

run_env(context)
