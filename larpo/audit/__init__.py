"""The audit's own arithmetic: what is compared with what, and how a result is worded. Where runs lie and how nodes
are run again is flows/audit's."""

from larpo.audit.results import Check, Verdict, counted, fails, holds, unchecked

__all__ = ["Check", "Verdict", "counted", "fails", "holds", "unchecked"]
