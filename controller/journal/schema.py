"""The journal's tables, and how those of an older version become these."""

from __future__ import annotations

import re

SCHEMA_VERSION = 2

EXPERIMENTS = """
CREATE TABLE experiments (
  id TEXT PRIMARY KEY, decision TEXT UNIQUE NOT NULL REFERENCES decisions(id),
  step INTEGER NOT NULL, tokens INTEGER NOT NULL, asked TEXT NOT NULL, planned INTEGER NOT NULL,
  state TEXT NOT NULL CHECK
    (state IN ('planned', 'running', 'done', 'failed', 'refused', 'abandoned')),
  attempts INTEGER NOT NULL, reason TEXT, effects TEXT, cost INTEGER NOT NULL,
  ended INTEGER UNIQUE, asked_at TEXT NOT NULL, started_at TEXT, finished_at TEXT,
  abandoned_by INTEGER, result TEXT);
"""
# once for each experiment that has ended since, which is news to the policy; of a branch that the
# trainer abandoned by a rewind, another may be made at the same step
ONE_DECISION = """
CREATE UNIQUE INDEX one_policy_decision_per_checkpoint ON decisions(step, experiments_known)
  WHERE asked_by = 'policy' AND abandoned_by IS NULL;
"""

RUN_TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE lease (
  id INTEGER PRIMARY KEY CHECK (id = 1), fence INTEGER NOT NULL, holder TEXT NOT NULL,
  counter INTEGER NOT NULL, started_at TEXT NOT NULL, seal TEXT NOT NULL);
CREATE TABLE checkpoints (
  step INTEGER PRIMARY KEY, tokens INTEGER NOT NULL, sample INTEGER NOT NULL, path TEXT NOT NULL,
  phase TEXT, generation INTEGER NOT NULL, weights TEXT NOT NULL, seen_at TEXT NOT NULL,
  drawn TEXT NOT NULL, losses TEXT NOT NULL, incarnation INTEGER NOT NULL);
CREATE TABLE evaluations (
  step INTEGER PRIMARY KEY REFERENCES checkpoints(step), state TEXT NOT NULL
    CHECK (state IN ('running', 'scored', 'failed', 'skipped')),
  attempts INTEGER NOT NULL, reason TEXT, scorecard TEXT, started_at TEXT NOT NULL,
  finished_at TEXT);
CREATE TABLE decisions (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, asked_by TEXT NOT NULL
    CHECK (asked_by IN ('policy', 'controller', 'operator')),
  step INTEGER NOT NULL, tokens INTEGER NOT NULL, verdict TEXT NOT NULL, policy TEXT NOT NULL,
  reason TEXT NOT NULL, evidence TEXT NOT NULL, weights_before TEXT NOT NULL, weights_proposed TEXT,
  weights_after TEXT NOT NULL, plan TEXT NOT NULL, guards TEXT NOT NULL,
  against_generation INTEGER NOT NULL, generation INTEGER, observation_digest TEXT,
  policy_digest TEXT, fence INTEGER NOT NULL, scored_at TEXT, decided_at TEXT NOT NULL,
  abandoned_by INTEGER, experiments_known INTEGER NOT NULL DEFAULT 0);
CREATE TABLE orders (
  generation INTEGER PRIMARY KEY, decision TEXT NOT NULL, policy TEXT NOT NULL,
  reason TEXT NOT NULL, weights TEXT NOT NULL, plan TEXT NOT NULL, issued_at TEXT NOT NULL,
  published_fence INTEGER, published_at TEXT, applied_sample INTEGER, applied_step INTEGER,
  applied_tokens INTEGER, applied_at TEXT,
  rejected TEXT);
CREATE TABLE events (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, fence INTEGER NOT NULL,
  kind TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT UNIQUE NOT NULL, kind TEXT NOT NULL,
  payload TEXT NOT NULL, created_ms INTEGER NOT NULL, done_at TEXT);
CREATE TABLE requests (
  id TEXT PRIMARY KEY, verb TEXT NOT NULL, asked TEXT NOT NULL, by TEXT NOT NULL,
  asked_at TEXT NOT NULL, taken_at TEXT NOT NULL, state TEXT NOT NULL
    CHECK (state IN ('done', 'refused')), answer TEXT NOT NULL, decision TEXT);
CREATE TABLE approvals (
  decision TEXT PRIMARY KEY REFERENCES decisions(id), state TEXT NOT NULL CHECK (state IN
    ('waiting', 'approved', 'rejected', 'superseded', 'expired')), why TEXT NOT NULL, by TEXT,
  reason TEXT, at TEXT, made TEXT);
CREATE TABLE assessments (
  id TEXT PRIMARY KEY, decision TEXT NOT NULL, name TEXT NOT NULL, value TEXT,
  rationale TEXT, by TEXT, at TEXT);
{EXPERIMENTS}
{ONE_DECISION}
-- for what is asked at every look or score, so that its cost doesn't grow with the run
CREATE INDEX outbox_pending ON outbox(seq) WHERE done_at IS NULL;
CREATE INDEX decisions_by_verdict ON decisions(verdict, seq);
CREATE INDEX evaluations_by_state ON evaluations(state, step);
CREATE INDEX orders_not_in_force ON orders(generation) WHERE applied_step IS NULL;
"""

MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (  # mixloop 0.1.0
        EXPERIMENTS,
        "ALTER TABLE decisions ADD COLUMN experiments_known INTEGER NOT NULL DEFAULT 0",
        "DROP INDEX one_policy_decision_per_checkpoint",
        ONE_DECISION,
    ),
}
"""By version, the statements that make the next one of it."""

LATER_TABLES = {"experiments": 2}  # by the version that brought them

TABLES = frozenset(re.findall(r"CREATE TABLE (\w+)", RUN_TABLES))
