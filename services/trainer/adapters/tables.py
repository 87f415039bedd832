"""The Trainer's tables. `document` holds a whole record as JSON; the columns beside it are what queries
look for.
"""

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All of the Trainer's tables."""


class DatasetRow(Base):
    """A dataset."""

    __tablename__ = "datasets"

    dataset_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str | None] = mapped_column(String(256), unique=True)
    digest: Mapped[str] = mapped_column(String(80), index=True)
    document: Mapped[str] = mapped_column(Text)


class JobRow(Base):
    """A job."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_adapter", "model_id", "adapter_id"),)

    job_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    request_id: Mapped[str | None] = mapped_column(String(256), unique=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    model_id: Mapped[str] = mapped_column(String(128))
    adapter_id: Mapped[str] = mapped_column(String(128))
    dataset_id: Mapped[str] = mapped_column(String(64), index=True)
    validation_dataset_id: Mapped[str | None] = mapped_column(String(64), index=True)
    document: Mapped[str] = mapped_column(Text)


class EventRow(Base):
    """One event of a job, numbered in it."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.job_id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    document: Mapped[str] = mapped_column(Text)
