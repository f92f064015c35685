"""From checked parameters to what members are asked: preset, draws, slabs."""

from __future__ import annotations

from clinfuse.errors import InputError
from clinfuse_serve.backend import Order
from clinfuse_serve.limits import Limits
from clinfuse_serve.parts import split
from clinfuse_serve.preset_table import PresetTable
from clinfuse_serve.problems import Problem, ProblemError
from clinfuse_serve.schemas import FuseParams
from clinfuse_serve.served_model import ServedModel


def order_of(
    params: FuseParams, presets: PresetTable, model: ServedModel, limits: Limits, there: int
) -> tuple[Order, list[int]]:
    """What is asked, and of which members.

    Args:
        there: how many members are deployed.

    Raises:
        ConfigError: no such preset, or an impossible weight. InputError: more members than there are.
        ProblemError: too many draws.
    """
    preset = presets.find(params.preset)
    if changes := params.weights.given():
        preset = preset.changed(**changes)
    members = there if params.members is None else params.members
    if members > there:
        raise InputError("more members asked than there are", expected=f"at most {there}", found=str(members))
    draws = tuple((s, j) for s in range(params.samples) for j in range(params.jitters + 1))
    if members * len(draws) > limits.samples:
        raise ProblemError(
            Problem(
                status=422,
                title="too many samples asked",
                expected=f"members × samples × (jitters + 1) at most {limits.samples}",
                found=f"{members} × {params.samples} × {params.jitters + 1}",
            )
        )
    order = Order(
        preset=preset,
        steps=params.steps,
        seed=params.seed,
        draws=draws,
        guided=params.guided,
        slab=params.slab,
        model=model.model_hash,
    )
    return order, list(range(members))


def parts_of(model: ServedModel, order: Order, depth: int) -> list[Order]:
    """Slab by slab where slices do not depend on each other: a 2D model without gradients or jitter."""
    guided = model.kind == "teacher" if order.guided is None else order.guided
    if model.spatial_dims != 2 or guided or any(jitter for _, jitter in order.draws):
        return [order]
    return split(order, depth)
