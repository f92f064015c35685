"""From a kind of lesion to a drawn lesion."""

from __future__ import annotations

import numpy as np

from clinfuse.errors import ConfigError
from clinfuse_prep.cohort import lesion_bone, lesion_haemorrhage, lesion_stroke, lesion_tumour
from clinfuse_prep.cohort.lesion_base import Lesion

__all__ = ["Lesion", "draw_lesion"]


def draw_lesion(kind: str, rng: np.random.Generator) -> Lesion:
    """A lesion of the given kind with every parameter drawn; "none" gives the absent lesion.

    Raises:
        ConfigError: there is no such kind.
    """
    if kind == "none":
        return Lesion({})
    if kind == "tumour":
        return lesion_tumour.Tumour(lesion_tumour.draw(rng))
    if kind == "bone_tumour":
        return lesion_bone.BoneTumour(lesion_bone.draw(rng))
    if kind == "stroke":
        return lesion_stroke.Stroke(lesion_stroke.draw(rng))
    if kind == "haemorrhage":
        drawn = lesion_haemorrhage.draw(rng)
        subdural = drawn["form"] == "subdural"
        return lesion_haemorrhage.Subdural(drawn) if subdural else lesion_haemorrhage.Haemorrhage(drawn)
    raise ConfigError(
        "there is no such kind of lesion",
        expected="none, tumour, bone_tumour, haemorrhage or stroke",
        found=repr(kind),
    )
