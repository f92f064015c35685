"""The embedded cohort: simulated MR–CT pairs of the head, with exact masks and a known misregistration."""

from clinfuse_prep.cohort.make import make_cohort

__all__ = ["make_cohort"]
