"""The OpenAPI document is the contract: schemathesis sends what it allows and what it forbids, over real HTTP."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings
from posting import Start
from schemathesis.specs.openapi.checks import positive_data_acceptance, unsupported_method

EXAMPLES = 12
LEFT_OUT = [positive_data_acceptance, unsupported_method]  # bytes that are no image may be refused


def test_the_service_keeps_its_contract(local_service: Start) -> None:
    """No server error; only documented codes, media types, headers and bodies, whatever is sent."""
    schema = schemathesis.openapi.from_url(f"{local_service()}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 8
    for operation in operations:

        @settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(case=operation.as_strategy())
        def keeps(case: schemathesis.Case) -> None:
            case.call_and_validate(excluded_checks=LEFT_OUT)

        keeps()
