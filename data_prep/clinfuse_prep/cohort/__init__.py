"""The embedded cohort: simulated MR–CT pairs of the head, with exact masks and a known misregistration.

`make_cohort` is loaded when first asked for, so that the command line can list the verb without numpy and scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clinfuse_prep.cohort.make import make_cohort

__all__ = ["make_cohort"]


def __getattr__(name: str) -> Any:
    if name == "make_cohort":
        from clinfuse_prep.cohort.make import make_cohort

        return make_cohort
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
