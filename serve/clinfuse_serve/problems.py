"""Errors as problem JSON (RFC 9457): what was expected, what was found, what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from clinfuse.errors import ClinfuseError, InputError

MEDIA_TYPE = "application/problem+json"
UNREADABLE: dict[type[Exception], str] = {
    UnicodeDecodeError: "text that is not UTF-8",
    RecursionError: "JSON that is nested too deep",
    ValueError: "a number of too many digits",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One refused request.

    Attributes:
        status: HTTP status.
        title: one short sentence in plain words.
        expected, found, todo: as in `InputError`.
        case: pseudonymous case id, or None.
        more: further facts, e.g. the members that are missing.
        headers: HTTP headers, e.g. Retry-After.
    """

    status: int
    title: str
    expected: str = ""
    found: str = ""
    todo: str = ""
    case: str | None = None
    more: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def body(self, request_id: str = "") -> bytes:
        """The reply's bytes."""
        facts = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "expected": self.expected,
            "found": self.found,
            "todo": self.todo,
            "case": self.case,
            "instance": f"urn:request:{request_id}" if request_id else None,
            **self.more,
        }
        return json.dumps({k: v for k, v in facts.items() if v not in ("", None)}).encode()


class ProblemError(ClinfuseError):
    """Raised anywhere in the service; answered as its problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.title)
        self.problem = problem

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problem,))


def from_error(error: Exception) -> Problem:
    """The problem for an error: 422 for wrong input, 500 without details for what nobody foresaw."""
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, InputError):
        return Problem(
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            title=error.problem,
            expected=error.expected,
            found=error.found,
            todo=error.todo,
            case=error.case,
        )
    if isinstance(error, ClinfuseError):
        return Problem(status=HTTPStatus.UNPROCESSABLE_ENTITY, title=str(error))
    return Problem(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        title="the service failed",
        found=type(error).__name__,
        todo="repeat the request; if it fails again, look for its request id in the service's log",
    )


def invalid(title: str, errors: Sequence[Mapping[str, Any]]) -> Problem:
    """422: fields that pydantic refused; names the first twenty and says what is wrong with each."""
    rows = [{"field": ".".join(map(str, row["loc"])), "problem": row["msg"]} for row in errors[:20]]
    return Problem(
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        title=title,
        expected="what /openapi.json describes",
        found="; ".join(f"{row['field'] or 'body'}: {row['problem']}" for row in rows),
        todo="correct the fields named",
        more={"fields": rows},
    )


def unreadable(detail: str, cause: BaseException | None) -> Problem:
    """422: a body that cannot be taken apart.

    Args:
        detail: what the parser says; the parsers at hand say nothing of what was sent.
        cause: what it stumbled over, if that is not said.
    """
    return Problem(
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        title="the request's body cannot be read",
        expected="multipart/form-data with its boundary and fields of at most 1 MiB, or JSON in UTF-8",
        found=next((words for kind, words in UNREADABLE.items() if isinstance(cause, kind)), detail),
        todo="send what /openapi.json describes, e.g. by curl -F",
    )


def no_map(name: str) -> Problem:
    """422: a map that only a calibrated model gives."""
    return Problem(
        status=HTTPStatus.UNPROCESSABLE_ENTITY,
        title=f"this model gives no {name} map",
        expected="a calibrated model",
        found="a model without calibration",
        todo="run `clinfuse calibrate` on the model, or ask for another map",
    )


def too_large(limit: int) -> Problem:
    """413: the body is larger than this service takes."""
    return Problem(
        status=HTTPStatus.CONTENT_TOO_LARGE if hasattr(HTTPStatus, "CONTENT_TOO_LARGE") else 413,
        title="the request is too large",
        expected=f"at most {limit} bytes",
        todo="crop or compress the images, or start the service with a larger limit",
    )


def unauthorized() -> Problem:
    """401: no token, or a wrong one."""
    return Problem(
        status=HTTPStatus.UNAUTHORIZED,
        title="this service needs a token",
        expected="header 'Authorization: Bearer TOKEN'",
        todo="ask whoever started the service for the token",
        headers={"WWW-Authenticate": "Bearer"},
    )


def forbidden(found: str) -> Problem:
    """403: a browser page of another site, or another host's name."""
    return Problem(
        status=HTTPStatus.FORBIDDEN,
        title="this service answers its own page and local programs only",
        found=found,
        todo="open the service by its own address",
    )


def queue_full(limit: int, retry_after_s: float) -> Problem:
    """429: as many requests wait as this replica takes."""
    return Problem(
        status=HTTPStatus.TOO_MANY_REQUESTS,
        title="the queue is full",
        expected=f"at most {limit} requests at a time",
        todo=f"repeat the request after {retry_after_s:.0f} s",
        headers={"Retry-After": f"{max(1, round(retry_after_s))}"},
    )


def no_members(asked: int, missing: Mapping[int, str]) -> Problem:
    """503: no member answered; says which are missing and why."""
    return _missing("no ensemble member answered", asked, 0, missing)


def not_whole(asked: int, missing: Mapping[int, str]) -> Problem:
    """503: a picture that all members must make, and one is missing."""
    return _missing("not every ensemble member answered", asked, asked - len(missing), missing)


def _missing(title: str, asked: int, used: int, missing: Mapping[int, str]) -> Problem:
    return Problem(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        title=title,
        expected=f"{asked} members",
        found=f"{used} members",
        todo="repeat the request shortly: members come back by themselves",
        more={"missing": [{"member": k, "reason": v} for k, v in sorted(missing.items())]},
        headers={"Retry-After": "5"},
    )


def too_late(deadline_s: float, found: str, members: Iterable[int]) -> Problem:
    """503: the deadline came before the members were asked."""
    return Problem(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        title="no answer before the deadline",
        expected=f"an answer within {deadline_s:g} s",
        found=found,
        todo="repeat the request shortly, or with a longer deadline_s",
        more={"missing": [{"member": k, "reason": "not asked before the deadline"} for k in members]},
        headers={"Retry-After": "5"},
    )


def case_gone() -> Problem:
    """410: the prepared case is no longer kept by this replica."""
    return Problem(
        status=HTTPStatus.GONE,
        title="this case is not kept here",
        expected="the token of a case fused recently",
        todo="send the images again",
    )
