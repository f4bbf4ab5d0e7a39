"""The parameters of an optimizer, and how their gradients are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import Module

from robo_orchard_fasthooks._clipping.gradients import Gradients
from robo_orchard_fasthooks._clipping.kinds import kind_of

__all__ = ["name_of", "optimizer_gradients"]

_Models = Callable[[], Iterable[Module]]

_requires_grad = attrgetter("requires_grad")


class _Known:
    """How the gradients of a list of parameters are stored.

    No parameter is referred to: a strong reference would keep an optimizer
    alive that one of its parameters refers to, and torch.utils.swap_tensors
    (`model.to` of DTensors) refuses tensors that have weak references.
    """

    def __init__(self, ids: list[int], gradients: Gradients):
        self.ids = ids
        self.repeats = len(set(ids)) < len(ids)
        self.gradients = gradients


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def optimizer_gradients(
    optimizer: Any, models: _Models
) -> tuple[list[Tensor], Gradients]:
    """The parameters of an optimizer that require gradients, each once.

    Args:
        optimizer (torch.optim.Optimizer): Any object with `param_groups`.
        models (Callable[[], Iterable[Module]]): Returns the models whose
            submodules FSDP may have wrapped.

    Returns:
        tuple[list[Tensor], Gradients]: The parameters, and how their gradients
            are stored; the latter is kept while the parameters are the same.

    Raises:
        RuntimeError: A parameter that FullyShardedDataParallel has flattened
            belongs to none of the models.
    """
    params: list[Tensor] = []
    for group in optimizer.param_groups:
        params += group["params"]
    if not all(map(_requires_grad, params)):
        params = [param for param in params if param.requires_grad]
    try:
        known = _KNOWN.get(optimizer)
    except TypeError:  # Not every object can be weakly referenced.
        known = None
    ids = list(map(id, params))
    if known is None or known.ids != ids:
        known = _Known(ids, _gradients(_once(params), optimizer, models))
        with suppress(TypeError):
            _KNOWN[optimizer] = known
    return _once(params) if known.repeats else params, known.gradients


def _once(params: list[Tensor]) -> list[Tensor]:
    return list({id(param): param for param in params}.values())


def _gradients(
    params: list[Tensor], optimizer: Any, models: _Models
) -> Gradients:
    # The mark that FullyShardedDataParallel leaves on its parameters.
    if not any(getattr(param, "_fsdp_flattened", False) for param in params):
        return kind_of(params)()
    from robo_orchard_fasthooks._clipping.fsdp1 import FSDP1Gradients

    try:
        return FSDP1Gradients(params, models())
    except LookupError as error:
        raise RuntimeError(
            f"{name_of(error.args[0], optimizer, ())} is sharded by "
            "FullyShardedDataParallel, but its module is unknown: prepare the "
            "model, or pass PipelineHookArgs(..., model=)"
        ) from None


def name_of(param: Tensor, optimizer: Any, models: Iterable[Module]) -> str:
    """Names a parameter by its place in the optimizer, and by its name.

    Args:
        param (Tensor): The parameter.
        optimizer (torch.optim.Optimizer): The optimizer that holds it.
        models (Iterable[Module]): Where its name is looked up, unless the
            optimizer has it.

    Returns:
        str: Such as "parameter 0 of group 1 ('head.weight')".
    """
    group, number, index = next(
        (group, number, index)
        for number, group in enumerate(optimizer.param_groups)
        for index, member in enumerate(group["params"])
        if member is param
    )
    names = list(group.get("param_names", ()))[index : index + 1]
    for model in models:
        names += [n for n, p in model.named_parameters() if p is param]
    place = f"parameter {index} of group {number}"
    return f"{place} ({names[0]!r})" if names else place
