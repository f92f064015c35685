"""Findings: what was seen in a case while it was prepared, kept as data instead of passing lines of a log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape

from clinfuse.console import say
from clinfuse.errors import ClinfuseError, InputError

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about one case that a person should know.

    Attributes:
        case: pseudonymous case id, or "" when it concerns the whole source; never a file name.
        severity: "info" (an assumption was made), "warning" (look at it), "error" (the case was left out).
        problem: one short sentence in plain words.
        expected, found: what would have been right, and what was there.
        todo: what the reader can do about it.
    """

    case: str
    severity: str
    problem: str
    expected: str = ""
    found: str = ""
    todo: str = ""

    def as_dict(self) -> dict[str, str]:
        """The same as a plain dictionary, for JSON and tables."""
        return asdict(self)

    def sentence(self) -> str:
        """The whole of it in words."""
        parts = [self.problem]
        parts += [f"{word} {text}" for word in ("expected", "found") if (text := getattr(self, word))]
        return "; ".join(parts + ([f"to do: {self.todo}"] if self.todo else []))

    def tell(self) -> None:
        """Say it to the person at the terminal, in a line."""
        say(escape(f"  {self.severity} · case {self.case or '–'}: {self.sentence()}"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Finding:
        """Inverse of `as_dict`."""
        return cls(**{name: str(data.get(name, "")) for name in cls.__dataclass_fields__})

    @classmethod
    def from_error(cls, error: BaseException, case: str) -> Finding:
        """An error that ended a case, as data. Foreign errors keep only their type: their text may name files."""
        if isinstance(error, InputError):
            facts = {key: value or "" for key, value in error.as_dict().items() if key != "case"}
            return cls(case=case, severity="error", **facts)
        if isinstance(error, ClinfuseError):
            return cls(case=case, severity="error", problem=str(error))
        return cls(
            case=case,
            severity="error",
            problem="the case could not be prepared",
            expected="readable images",
            found=f"an unforeseen {type(error).__name__}",
            todo="open the images in a viewer; if they look right, report this as a defect",
        )


def worst(findings: Iterable[Finding]) -> str:
    """The highest severity among the findings, or "" when there is none."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default="")
