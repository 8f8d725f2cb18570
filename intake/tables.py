"""The ledger's tables.  No column can hold personal data: ids, digests, paths of evidence, states."""

from sqlalchemy import JSON, Column, Index, Integer, MetaData, String, Table

from intake.database import UtcDateTime

METADATA = MetaData()

REQUESTS = Table(
    "deletion_request",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("model", String(100), nullable=False),
    Column("axis", String(10), nullable=False),
    Column("targets", JSON, nullable=False),
    Column("forget_set", String(200), nullable=False),
    Column("revision", String(64)),
    Column("options", JSON, nullable=False),
    Column("state", String(20), nullable=False),
    Column("deadline", UtcDateTime, nullable=False),
    Column("created", UtcDateTime, nullable=False),
    Column("updated", UtcDateTime, nullable=False),
    Column("attempts", Integer, nullable=False),
    # The claim of the running process: who (a random token), under which lock folder, until when.
    Column("lease_token", String(32)),
    Column("lease_domain", String(32)),
    Column("lease_expires", UtcDateTime),
    # What binds every attempt, once made; and what the last one left.
    Column("plan", JSON),
    Column("error", String(60)),
    Column("version", String(20)),
    Column("plan_sha256", String(64)),
    Column("certificate", String(500)),
    Column("certificate_sha256", String(64)),
    Column("report", String(500)),
    Column("verdict", JSON),
    Index("deletion_request_by_model", "model", "state"),
    Index("deletion_request_by_deadline", "deadline"),
)

PROMOTIONS = Table(
    "promotion_journal",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("model", String(100), nullable=False),
    Column("kind", String(10), nullable=False),
    Column("request_id", String(32), nullable=False),
    Column("from_version", String(20)),
    Column("previous_version", String(20)),
    Column("to_version", String(20), nullable=False),
    Column("step", String(20), nullable=False),
    Column("updated", UtcDateTime, nullable=False),
    Index("promotion_journal_by_model", "model", "step"),
)

LEASE_COLUMNS = ("lease_token", "lease_domain", "lease_expires")
EVIDENCE_COLUMNS = ("version", "plan_sha256", "certificate", "certificate_sha256", "report", "verdict")
