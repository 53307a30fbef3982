"""Can this benchmark table be true? Its rows against the roof of their part, and the likely reason where not."""

from bench.judge.audit.verdict import Audit, audit

__all__ = ["Audit", "audit"]
