"""The parameters of an optimizer, and how their gradients are stored."""

from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.nn import Module

from robo_orchard_fasthooks._clipping.gradients import Call, Gradients

_requires_grad = attrgetter("requires_grad")


class _Kept(NamedTuple):
    """What is kept between steps.

    No parameter is referred to: a strong reference would keep an optimizer
    alive that one of its parameters refers to, and torch.utils.swap_tensors
    (`model.to` of DTensors) refuses tensors that have weak references.
    """

    ids: list[int]
    has_repeats: bool
    gradients: Gradients


_KEPT: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


class OptimizerParameters:
    """The parameters of an optimizer that require gradients, each once.

    Their names, and FSDP's modules, are looked up in the models that the
    accelerator has prepared, and in `model`.
    """

    def __init__(self, optimizer: Any, accelerator: Any, model: Any):
        self._optimizer = optimizer
        self._accelerator = accelerator
        self._model = model
        params = self.all_params()
        if not all(map(_requires_grad, params)):
            params = [param for param in params if param.requires_grad]
        try:
            kept = _KEPT.get(optimizer)
        except TypeError:  # Not every object can be weakly referenced.
            kept = None
        ids = list(map(id, params))
        if kept is None or kept.ids != ids:
            once = _once(params)
            has_repeats = len(once) < len(params)
            kept = _Kept(ids, has_repeats, self._gradients(once))
            with suppress(TypeError):
                _KEPT[optimizer] = kept
        self.params = _once(params) if kept.has_repeats else params
        self.gradients = kept.gradients

    def all_params(self) -> list[Tensor]:
        """All parameters of the optimizer, as it lists them."""
        params: list[Tensor] = []
        for group in self._optimizer.param_groups:
            params += group["params"]
        return params

    def _gradients(self, params: list[Tensor]) -> Gradients:
        # The mark that FullyShardedDataParallel leaves on its parameters.
        if not any(getattr(p, "_fsdp_flattened", False) for p in params):
            return Gradients()
        from robo_orchard_fasthooks._clipping.fsdp1 import FSDP1Gradients

        try:
            return FSDP1Gradients(params, self._models())
        except LookupError as error:
            raise RuntimeError(
                f"{self.name(error.args[0])} is sharded by "
                "FullyShardedDataParallel, but its module is unknown: prepare "
                "the model, or pass PipelineHookArgs(..., model=)"
            ) from None

    def _models(self) -> list[Module]:
        found = [*getattr(self._accelerator, "_models", ()), self._model]
        return [model for model in found if isinstance(model, Module)]

    def call(self, params: list[Tensor]) -> Call:
        """The gradients of some of the parameters."""
        return Call(
            self.gradients,
            params,
            lambda index: f"the gradient of {self.name(params[index])}",
        )

    def name(self, param: Tensor) -> str:
        """Names a parameter by its place in the optimizer, and by its name.

        Such as "parameter 0 of group 1 ('head.weight')".
        """
        group, number, index = next(
            (group, number, index)
            for number, group in enumerate(self._optimizer.param_groups)
            for index, member in enumerate(group["params"])
            if member is param
        )
        names = list(group.get("param_names", ()))[index : index + 1]
        for model in self._models():
            names += [n for n, p in model.named_parameters() if p is param]
        place = f"parameter {index} of group {number}"
        return f"{place} ({names[0]!r})" if names else place


def _once(params: list[Tensor]) -> list[Tensor]:
    return list({id(param): param for param in params}.values())
