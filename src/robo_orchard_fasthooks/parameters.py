"""The parameters of an optimizer, and what is kept of them between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import attrgetter, is_
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor
from torch.nn import Module

from robo_orchard_fasthooks.clip import gradients_of
from robo_orchard_fasthooks.dense import Dense

__all__ = ["name_of", "trainable"]

_Models = Callable[[], Iterable[Module]]

_requires_grad = attrgetter("requires_grad")


class _Known:
    """How the gradients of a list of parameters are stored.

    It holds the parameters weakly: they may refer to their optimizer, by a
    hook for example, and would keep it alive.
    """

    def __init__(self, params: list[Tensor], stored: Dense):
        self._refs = [ref(param) for param in params]
        self.stored = stored
        self.repeats = len(set(map(id, params))) < len(params)

    def fits(self, params: list[Tensor]) -> bool:
        """Whether these are the parameters it was made from."""
        # By identity: tensors compare by element.
        return len(params) == len(self._refs) and all(
            map(is_, params, [known() for known in self._refs])
        )


_KNOWN: WeakKeyDictionary[Any, _Known] = WeakKeyDictionary()


def trainable(optimizer: Any, models: _Models) -> tuple[list[Tensor], Dense]:
    """The parameters of an optimizer that require gradients, each once.

    Args:
        optimizer (torch.optim.Optimizer): Anything with `param_groups`.
        models (Callable[[], Iterable[Module]]): Where FSDP modules are.

    Returns:
        tuple[list[Tensor], Dense]: The parameters, and how their gradients
            are stored; kept until other parameters are found.

    Raises:
        RuntimeError: A parameter that FSDP has flattened is of none of the
            models.
    """
    params: list[Tensor] = []
    for group in optimizer.param_groups:
        params += group["params"]
    if not all(map(_requires_grad, params)):
        params = [param for param in params if param.requires_grad]
    known = None
    with suppress(TypeError):  # Of an optimizer without weak references.
        known = _KNOWN.get(optimizer)
    if known is None or not known.fits(params):
        known = _Known(params, _stored(_once(params), optimizer, models))
        with suppress(TypeError):
            _KNOWN[optimizer] = known
    return _once(params) if known.repeats else params, known.stored


def _once(params: list[Tensor]) -> list[Tensor]:
    return list({id(param): param for param in params}.values())


def _stored(params: list[Tensor], optimizer: Any, models: _Models) -> Dense:
    # What FullyShardedDataParallel marks its parameters with.
    if not any(getattr(param, "_fsdp_flattened", False) for param in params):
        return gradients_of(params)
    from robo_orchard_fasthooks.fsdp1 import Flattened

    try:
        return Flattened(params, models())
    except LookupError as error:
        raise RuntimeError(
            f"{name_of(error.args[0], optimizer, ())} is sharded by "
            "FullyShardedDataParallel, but of an unknown module: prepare the "
            "model, or pass PipelineHookArgs(..., model=)"
        ) from None


def name_of(param: Tensor, optimizer: Any, models: Iterable[Module]) -> str:
    """Where a parameter is in its optimizer, with its name if it has one."""
    place, name = next(
        (
            f"parameter {index} of group {number}",
            group["param_names"][index] if "param_names" in group else None,
        )
        for number, group in enumerate(optimizer.param_groups)
        for index, member in enumerate(group["params"])
        if member is param
    )
    for model in models:
        for known_as, member in model.named_parameters():
            if name is None and member is param:
                name = known_as
    return place if name is None else f"{place} ({name!r})"
