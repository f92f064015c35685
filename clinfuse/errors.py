"""The exception family: every user mistake says what was expected, what was found, where, and what to do."""

from __future__ import annotations


class ClinfuseError(Exception):
    """Root of all errors that clinfuse raises on purpose."""


class InputError(ClinfuseError, ValueError):
    """A case, file or argument cannot be used as it is.

    Args:
        problem: one short sentence in plain words.
        expected: what would have been right.
        found: what was there instead.
        case: pseudonymous case id, or None; never a file name or a patient's id.
        todo: what the reader can do about it.
    """

    def __init__(
        self, problem: str, *, expected: str = "", found: str = "", case: str | None = None, todo: str = ""
    ) -> None:
        self.problem, self.expected, self.found, self.case, self.todo = problem, expected, found, case, todo
        parts = [f"case {case}: {problem}" if case else problem]
        if expected:
            parts.append(f"expected {expected}")
        if found:
            parts.append(f"found {found}")
        if todo:
            parts.append(f"to do: {todo}")
        super().__init__("; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        state = {"expected": self.expected, "found": self.found, "case": self.case, "todo": self.todo}
        return (_rebuild, (type(self), self.problem, state))

    def as_dict(self) -> dict[str, str | None]:
        """The same facts as data, for problem JSON and finding tables."""
        return {
            "problem": self.problem,
            "expected": self.expected,
            "found": self.found,
            "case": self.case,
            "todo": self.todo,
        }


def _rebuild(cls: type[InputError], problem: str, state: dict[str, str | None]) -> InputError:
    return cls(problem, **state)  # type: ignore[arg-type]


def describe(error: BaseException) -> str:
    """What went wrong, fit for a report: our own errors in full, others by kind and place, without paths or names."""
    if isinstance(error, ClinfuseError):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" in {trace.tb_frame.f_code.co_name}" if trace is not None else ""
    return f"{type(error).__name__}{place}"


class GeometryError(InputError):
    """Shapes, spacings or affines of one case do not belong together."""


class ConfigError(InputError):
    """An option is outside its range or does not exist."""


class ModelFolderError(InputError):
    """A model folder is missing, incomplete, corrupted or of a foreign kind."""


class MissingPartError(ClinfuseError, ImportError):
    """An optional package is needed for what was asked; the message names it and how to install it."""
