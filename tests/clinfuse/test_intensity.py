"""Intensity facts against sums by hand."""

from dataclasses import replace

import numpy as np
import pytest

from clinfuse.case import Case
from clinfuse.intensity import head_means, intensity_facts


def test_facts_are_of_the_head_alone_and_over_cases(tiny_case: Case) -> None:
    head = (tiny_case.anatomy > 0.03) | (tiny_case.companion > 0.03)
    means = head_means(tiny_case)
    assert means["anatomy"] == pytest.approx(float(tiny_case.anatomy[head].mean()))
    darker = replace(tiny_case, companion=np.where(head, tiny_case.companion / 2, 0).astype(np.float32))
    shaded = head_means(darker)["companion"]
    facts = intensity_facts(iter([tiny_case, darker]))
    assert facts["cases"] == 2 and facts["anatomy"]["std"] < 1e-2
    assert facts["companion"]["mean"] == pytest.approx((means["companion"] + shaded) / 2, abs=1e-4)
    assert facts["companion"]["std"] == pytest.approx(abs(means["companion"] - shaded) / 2, abs=1e-4)


def test_air_alone_has_no_intensity(tiny_case: Case) -> None:
    air = np.zeros_like(tiny_case.anatomy)
    empty = replace(tiny_case, anatomy=air, companion=air)
    assert head_means(empty) == {} and intensity_facts([empty]) == {}
