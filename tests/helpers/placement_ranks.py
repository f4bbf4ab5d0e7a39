"""Each rank's program in test_placements.py: `placement_ranks.py NAME RANKS`.

Gradients of every placement, side by side. The oracles are accelerate's
method, torch's functions on the full tensors, and arithmetic.
"""

import gc
import itertools
import sys
import threading
import weakref
from contextlib import contextmanager
from datetime import timedelta
from operator import is_
from types import FunctionType, ModuleType
from unittest import mock

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    SequenceParallel,
    parallelize_module,
)

from helpers.clipping_ranks import (
    CLIPS,
    CLIPS_NOT,
    FULL,
    INF,
    NO,
    backward,
    case,
    check,
    check_close,
    check_same,
    check_total,
    failures,
    from_all,
    fsdp1_model,
    full,
    grads,
    local,
    main,
    make_accelerator,
    mesh_of,
    norm_hook,
    params_of,
    randn,
    run_hook,
    true_norm,
    value_hook,
    whole_grads,
)
from robo_orchard_fasthooks._clipping.kinds import kind_of
from robo_orchard_fasthooks._clipping.local import DEVICES
from robo_orchard_fasthooks._clipping.mesh import MeshGradients
from robo_orchard_fasthooks.clip import (
    _kept,
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)

WAYS = ["hook", "function", "halves"]
OPERATIONS = ["sum", "avg", "max", "min"]


def clip(way, params, max_norm, norm_type=2.0):
    """Clips by norm and returns the norm; the hook's has to be plain."""
    if way == "function":
        return clip_grad_norm_(params, max_norm, norm_type)
    if way == "halves":
        total = get_total_norm(
            [param.grad for param in params if param.grad is not None],
            norm_type,
        )
        clip_grads_with_norm_(params, max_norm, total)
        return total
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, params)
    total = hook.total_norm
    check(type(total) is torch.Tensor and total.dim() == 0, "total:", total)
    return total


def clip_values(way, params, clip_value):
    if way == "hook":
        run_hook(value_hook(clip_value), params)
    else:
        clip_grad_value_(params, clip_value)


def placed(placement, mesh, shape=(4, 6), seed=0, dtype=torch.float32):
    """A parameter, whose gradient is placed so; None makes a plain one."""
    param = nn.Parameter(torch.zeros(shape, dtype=dtype))
    if placement is None:
        param.grad = randn(shape, dtype, seed)
        return param
    param = nn.Parameter(
        distribute_tensor(param.detach(), mesh, [Replicate()] * mesh.ndim)
    )
    placements = [*placement] if isinstance(placement, tuple) else [placement]
    param.grad = distribute_tensor(
        randn(shape, dtype, seed),
        mesh,
        [Replicate() if each.is_partial() else each for each in placements],
    )
    if any(each.is_partial() for each in placements):
        # Of its own on each rank, unless ranks have to have the same.
        at = [
            coordinate
            for coordinate, each in zip(
                mesh.get_coordinate(), placements, strict=True
            )
            if not each.is_replicate()
        ]
        mine = randn(local(param.grad).shape, dtype, seed + 50 * sum(at))
        param.grad = DTensor.from_local(
            mine,
            mesh,
            placements,
            shape=param.shape,
            stride=param.stride(),
        )
    return param


def twins(params):
    """Parameters with gradients of their own; `clone` would reduce parts."""
    made = [nn.Parameter(param.detach()) for param in params]
    for twin, param in zip(made, params, strict=True):
        grad = local(param.grad).clone()
        if isinstance(param.grad, DTensor):
            grad = DTensor.from_local(
                grad, param.grad.device_mesh, param.grad.placements
            )
        twin.grad = grad
    return made


def reduced(params):
    """What the gradients of parameters are on all ranks together."""
    return [full(grad).clone() for grad in grads(params) if grad is not None]


def check_clips(clip, params, max_norm, norm_type=2.0):
    """Compares a way of clipping with torch's on the full tensors."""
    oracle = params_of(reduced(params))
    expected = nn.utils.clip_grad_norm_(oracle, max_norm, norm_type)
    objects = grads(params)
    total = full(clip(params, max_norm, norm_type))
    check_close("total", total, expected)
    check_same("total on all ranks", from_all(total), 2 * [total])
    for index, (found, wanted) in enumerate(
        zip(reduced(params), grads(oracle), strict=True)
    ):
        check_close(f"gradient {index}", found, wanted)
    check(all(map(is_, objects, grads(params))), "other objects")


@contextmanager
def unchanged(params):
    """Checks that what this rank has of the gradients stays as it is."""
    before = [local(grad).clone() for grad in grads(params)]
    yield
    check_same("changed", [local(grad) for grad in grads(params)], before)


def refusal(run):
    try:
        run()
    except NotImplementedError as error:
        return str(error)
    return ""


# Gradients that are still to be reduced.


@case("placements", way=[None, *WAYS], max_norm=[1.0, CLIPS_NOT])
def sequence_parallel(way, max_norm):
    """A norm's Partial gradients beside the plain ones of a linear layer."""
    torch.manual_seed(0)
    mesh, rank = mesh_of(2), dist.get_rank()
    norm = parallelize_module(nn.LayerNorm(8), mesh, SequenceParallel())
    head = nn.Linear(8, 2)
    inputs = torch.randn(2, 4, 8).chunk(2, 1)[rank].contiguous()
    hidden = norm(DTensor.from_local(inputs, mesh, [Shard(1)]))
    head(hidden.full_tensor()).square().sum().backward()
    params = [*norm.parameters(), *head.parameters()]
    check(any(p.is_partial() for p in params[0].grad.placements), "Partial")
    oracle = twins(params)
    accelerator = make_accelerator()
    expected = accelerator.clip_grad_norm_(oracle, max_norm)
    check(round(expected.item(), 4) == 15.8782, "accelerate's", expected)
    if way is None:
        hook = norm_hook(max_norm)
        run_hook(hook, params, accelerator)
        total = hook.total_norm
    else:
        total = clip(way, params, max_norm)
    check_total(total, expected)
    check_same("gradient", grads(params), grads(oracle))


@case(
    "placements",
    operation=OPERATIONS,
    beside=[(), (None,), (Shard(0),), (Replicate(), None, Shard(1))],
    norm_type=[INF, 1.0, 2.0, 3.0, -INF],
    max_norm=[CLIPS, CLIPS_NOT],
    way=WAYS,
)
def parts(operation, beside, norm_type, max_norm, way):
    """torch cannot scale parts of a maximum, and norms the largest part."""
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate((Partial(operation), *beside))
    ]
    check_clips(lambda *args: clip(way, *args), params, max_norm, norm_type)


@case(
    "placements",
    placements=[
        (Shard(0), Partial()),
        (Partial(), Shard(1)),
        (Partial(), Partial()),
        (Replicate(), Partial("max")),
    ],
    shape=[(1, 2), (2, 1)],
    way=WAYS,
)
def parts_on_two_dimensions(placements, shape, way):
    params = [placed(placements, mesh_of(*shape)), placed(None, None, seed=1)]
    check_clips(lambda *args: clip(way, *args), params, CLIPS)


@case(
    "placements",
    operation=OPERATIONS,
    beside=[(), (None, Shard(0))],
    way=["hook", "function"],
    poison=[None, torch.nan],
)
def parts_by_value(operation, beside, way, poison):
    """torch clamps parts of a maximum, but refuses those of a sum."""
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate((Partial(operation), *beside))
    ]
    # gloo's maximum and minimum may drop NaN.
    if poison is not None and operation in {"sum", "avg"}:
        local(params[0].grad)[0, 0] = poison
    expected = [grad.clamp(-0.5, 0.5) for grad in reduced(params)]
    objects = grads(params)
    clip_values(way, params, 0.5)
    for index, (found, wanted) in enumerate(
        zip(reduced(params), expected, strict=True)
    ):
        equal = torch.allclose(found, wanted, rtol=0, atol=0, equal_nan=True)
        check(equal, index, found, "for", wanted)
    check(all(map(is_, objects, grads(params))), "other objects")


@case(
    "placements",
    placements=[(Shard(0), Partial()), (Partial(), Shard(1))],
    shape=[(1, 2), (2, 1)],
)
def parts_by_value_on_two_dimensions(placements, shape):
    params = [placed(placements, mesh_of(*shape))]
    expected = [grad.clamp(-0.5, 0.5) for grad in reduced(params)]
    clip_grad_value_(params, 0.5)
    check(torch.equal(*reduced(params), *expected), grads(params))


@case("placements", mode=["norm", "value", "halves"], way=["hook", "function"])
def parts_of_a_product(mode, way):
    """Scaling them would multiply the coefficient: refused by name."""
    mesh = mesh_of(2)
    params = [placed(None, mesh), placed(Shard(0), mesh)]
    params.append(placed(Partial("product"), mesh))
    if mode == "norm":
        run = lambda: clip(way, params, CLIPS)  # noqa: E731
    elif mode == "value":
        run = lambda: clip_values(way, params, 0.1)  # noqa: E731
    else:
        one = torch.tensor(1.0)
        run = lambda: clip_grads_with_norm_(params, CLIPS, one)  # noqa: E731
    with unchanged(params):
        said = refusal(run)
    check("parameter 2" in said and "product" in said, "said:", said)
    params[2].grad = None
    check(refusal(run) == "", "refused without it")


# What this package does not know is left to torch, group by group.


@case("placements", way=WAYS, norm_type=[2.0, INF])
def a_gradient_that_is_a_parameter(way, norm_type):
    """Of a class that torch's own functions know, after a DTensor."""
    mesh = mesh_of(2)
    params = [placed(Shard(0), mesh), placed(None, mesh, seed=1)]
    params[1].grad = nn.Parameter(params[1].grad)
    check_clips(lambda *args: clip(way, *args), params, CLIPS, norm_type)


@case("placements", way=WAYS, placement=[Shard(0), Partial()])
def of_plain_parameters(way, placement):
    """DTensors that plain parameters have for gradients."""
    mesh = mesh_of(2)
    params = [placed(None, mesh, seed=seed) for seed in range(3)]
    params[1].grad = placed(placement, mesh, seed=3).grad
    check_clips(lambda *args: clip(way, *args), params, CLIPS)


@case("placements", way=["hook", "function"], placement=[Shard(0), Partial()])
def of_plain_parameters_by_value(way, placement):
    mesh = mesh_of(2)
    params = [placed(None, mesh, seed=seed) for seed in range(3)]
    params[1].grad = placed(placement, mesh, seed=3).grad
    expected = [grad.clamp(-0.5, 0.5) for grad in reduced(params)]
    clip_values(way, params, 0.5)
    check(all(map(torch.equal, reduced(params), expected)), grads(params))


@contextmanager
def no_known_device():
    """Everything is left to torch, as on a device of an unknown type."""
    before = DEVICES.copy()
    DEVICES.clear()
    try:
        yield
    finally:
        DEVICES.update(before)


@case(
    "placements",
    way=WAYS,
    chosen=[
        (Shard(0),),
        (Partial(), None),
        (Shard(0), None, Replicate()),
    ],
    norm_type=[2.0, INF],
)
def left_to_torch(way, chosen, norm_type):
    with no_known_device():
        params = [
            placed(placement, mesh_of(2), seed=seed)
            for seed, placement in enumerate(chosen)
        ]
        check_clips(lambda *args: clip(way, *args), params, CLIPS, norm_type)


class OfItsOwn(Partial):
    """A placement of which torch does not know how to scale in place."""

    def __init__(self):
        super().__init__("max")


@case("placements", way=WAYS)
def torch_refuses(way):
    """Before anything of the others has changed."""
    mesh = mesh_of(2)
    params = [placed(None, mesh), placed(Shard(0), mesh)]
    other = mesh_of(2, names="b")
    params.append(placed(OfItsOwn(), other))
    raised = False
    with unchanged(params):
        try:
            clip(way, params, CLIPS)
        except RuntimeError as error:
            raised = "in-place operations" in str(error)
    check(raised, "not refused")


# The norm that a hook shows, and that a function returns.


@case("placements", norm_type=[INF, 2.0])
def total_norm_of_the_hook(norm_type):
    """torch's own is 3.0 on one rank and 7.0 on the other, for inf."""
    mesh = mesh_of(2)
    params = params_of([distribute_tensor(torch.tensor([3.0, 7]), mesh)])
    params[0].grad = distribute_tensor(
        torch.tensor([3.0, 7.0]), mesh, [Shard(0)]
    )
    params.append(placed(Replicate(), mesh, (2,)))
    parts = torch.tensor([0.5, -0.25])
    params[1].grad = DTensor.from_local(parts, mesh, [Partial()])
    expected = true_norm(reduced(params), norm_type)
    total = clip("hook", params, CLIPS, norm_type)
    check_close("total", total, expected)
    check_same("total on all ranks", from_all(total), 2 * [total])


@case(
    "placements",
    chosen=[(Shard(0),), (Partial(), Shard(0)), (Partial("max"), Replicate())],
    norm_type=[2.0, INF],
    known=[True, False],
)
def what_functions_return(chosen, norm_type, known):
    """A DTensor for one mesh, as torch's functions; a hook's is plain."""
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate(chosen)
    ]
    expected = true_norm(reduced(params), norm_type)
    if known:
        totals = {
            "function": clip_grad_norm_(params, CLIPS_NOT, norm_type),
            "half": get_total_norm(grads(params), norm_type),
        }
    elif any(
        type(each) is Partial and each.reduce_op == "max" for each in chosen
    ):
        return  # torch cannot scale it.
    else:
        with no_known_device():
            totals = {
                "function": clip_grad_norm_(params, CLIPS_NOT, norm_type)
            }
    for name, total in totals.items():
        check(isinstance(total, DTensor), name, type(total))
        check_close(name, full(total), expected)
    total = clip("hook", params, CLIPS_NOT, norm_type)
    check_close("hook", total, expected)


@case(
    "placements",
    of=["plain", "replicated", "sharded over ranks"],
    beside=[(Shard(0),), (Shard(0), None), (None,)],
)
def norms_that_are_given(of, beside):
    mesh = mesh_of(2)
    params = [
        placed(placement, mesh, seed=seed)
        for seed, placement in enumerate(beside)
    ]
    expected = [grad * (0.5 / (2.0 + 1e-6)) for grad in reduced(params)]
    total = torch.tensor(2.0)
    if of == "replicated":
        total = DTensor.from_local(total, mesh, [Replicate()])
    elif of == "sharded over ranks":  # As torch returns inf-norms.
        mine = torch.tensor(2.0 - dist.get_rank())
        total = DTensor.from_local(mine, mesh, [Partial("max")])
    clip_grads_with_norm_(params, 0.5, total)
    for found, wanted in zip(reduced(params), expected, strict=True):
        check_close("gradient", found, wanted)


# FullyShardedDataParallel's parameters and DTensors in one optimizer.


@case(
    "placements",
    flat=[False, True],
    strategies=[(FULL, FULL), (NO, NO)],
    norm_type=[INF, 1.0, 2.0],
    chosen=[(Shard(0),), (Partial(), Replicate(), None)],
    max_norm=[CLIPS, CLIPS_NOT],
)
def fsdp1_beside_dtensors(flat, strategies, norm_type, chosen, max_norm):
    model = backward(fsdp1_model(flat, strategies))
    sharded = list(model.parameters())
    others = [
        placed(placement, mesh_of(2), seed=seed)
        for seed, placement in enumerate(chosen)
    ]
    before = [
        None if grad is None else grad.clone() for grad in grads(sharded)
    ]
    whole = reduced(others)
    expected = true_norm([*whole_grads().values(), *whole], norm_type)
    hook = norm_hook(max_norm, norm_type=norm_type)
    run_hook(hook, [*sharded, *others], model=model)
    check(type(hook.total_norm) is torch.Tensor, hook.total_norm)
    check_close("total", hook.total_norm, expected)
    coefficient = (max_norm / (expected + 1e-6)).clamp(max=1)
    for found, old in zip(grads(sharded), before, strict=True):
        if old is not None:
            check_close("gradient of FSDP", found, old * coefficient)
    for found, old in zip(reduced(others), whole, strict=True):
        check_close("gradient", found, old * coefficient)


@case("placements", flat=[False, True], without=[False, True])
def fsdp1_beside_dtensors_by_value(flat, without):
    model = backward(fsdp1_model(flat))
    sharded = list(model.parameters())
    others = [placed(each, mesh_of(2)) for each in (Shard(0), Partial())]
    if without:
        for param in others:
            param.grad = None
    expected = [
        None if grad is None else full(grad).clamp(-0.5, 0.5)
        for grad in grads([*sharded, *others])
    ]
    run_hook(value_hook(0.5), [*sharded, *others], model=model)
    for param, wanted in zip([*sharded, *others], expected, strict=True):
        check((param.grad is None) == (wanted is None), "None or not")
        if wanted is not None:
            check(torch.equal(full(param.grad), wanted), param.grad, wanted)


@case("placements", norm_type=[-INF, -1.0])
def fsdp1_beside_dtensors_without_gradients(norm_type):
    """Which have no part in a norm of which the smallest count."""
    model = backward(fsdp1_model(False))
    params = list(model.parameters())
    mine = [grad for grad in grads(params) if grad is not None]
    other = placed(Shard(0), mesh_of(2))
    other.grad = None
    hook = norm_hook(CLIPS_NOT, norm_type=norm_type)
    run_hook(hook, [*params, other], model=model)
    expected = true_norm(sum(from_all(mine), []), norm_type)
    check(expected > 0, "a gradient is zero")
    check_close("total", hook.total_norm, expected)


# What is kept between calls.


@case("placements", way=WAYS, norm_type=[2.0, INF])
def other_gradients_of_as_many(way, norm_type):
    """What was planned for some is not used for others."""
    meshes = mesh_of(2), mesh_of(2, names="b"), mesh_of(1, 2)
    for seed, (mesh, placement) in enumerate(
        [
            (meshes[0], Shard(0)),
            (meshes[0], Replicate()),
            (meshes[1], Shard(0)),
            (meshes[0], Partial("max")),
            (meshes[2], (Replicate(), Shard(1))),
            (meshes[0], Shard(1)),
            (meshes[0], None),
            (meshes[0], Shard(0)),
        ]
    ):
        dtype = torch.float64 if seed == 5 else torch.float32
        params = [
            placed(placement, mesh, seed=seed, dtype=dtype),
            placed(Shard(0), meshes[0], seed=seed + 1),
        ]
        check_clips(lambda *args: clip(way, *args), params, CLIPS, norm_type)


@case("placements", way=["function", "halves"])
def planned_once(way):
    """For gradients that are placed alike."""
    from robo_orchard_fasthooks._clipping import placed as module

    made = []

    class Counted(module.MeshGradients):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    plain, module.MeshGradients = module.MeshGradients, Counted
    try:
        mesh = mesh_of(2)
        # A number of parameters of which nothing else is kept.
        params = [placed(Shard(0), mesh, seed=seed) for seed in range(23)]
        for _ in range(3):
            clip(way, params, CLIPS)
        expected = 2 if way == "halves" else 1
        # The halves keep one plan for both, if parameters are DTensors too.
        check(0 < len(made) <= expected, "planned", len(made), "times")
    finally:
        module.MeshGradients = plain


@case("placements", way=["function", "halves"])
def nothing_is_kept_alive(way):
    """No tensor of the caller, and no process group by way of a mesh."""
    mesh = mesh_of(2)
    params = [placed(p, mesh) for p in (Shard(0), Partial(), None, Shard(1))]
    clip(way, params, CLIPS)
    kept = reachable(
        _kept(kind_of(params), len(params), threading.get_ident())
    )
    check(any(isinstance(each, MeshGradients) for each in kept), "no plan")
    for each in kept:
        check(not isinstance(each, (DeviceMesh, DTensor, nn.Parameter)), each)
    found = [
        weakref.ref(each)
        for param in params
        for each in (param, param.grad, local(param.grad))
    ]
    del params
    gc.collect()
    check(all(ref() is None for ref in found), "a tensor is kept alive")


def reachable(start):
    """All objects that an object keeps alive, but for modules and classes."""
    found, waiting = {}, [start]
    while waiting:
        each = waiting.pop()
        if id(each) in found or isinstance(each, (type, ModuleType)):
            continue
        found[id(each)] = each
        if isinstance(each, FunctionType):  # Not by way of its globals.
            waiting += [each.__closure__, each.__defaults__]
        else:
            waiting += gc.get_referents(each)
    return [*found.values()]


# Placements, meshes, norms and bounds at random, the same on all ranks.


@st.composite
def examples(draw):
    kinds = [(None, None)]
    meshes = draw(st.sampled_from([(0,), (0, 1), (2,), (0, 2)]))
    for index in meshes:
        one = [Shard(0), Shard(1), Replicate(), *map(Partial, OPERATIONS)]
        if index == 2:
            placements = [
                (first, second)
                for first, second in itertools.product(
                    [Shard(0), Replicate(), Partial()], repeat=2
                )
            ]
        else:
            placements = one
        kinds += [(placement, index) for placement in placements]
    return {
        "chosen": draw(
            st.lists(
                st.tuples(
                    st.sampled_from(kinds),
                    st.sampled_from([(4, 6), (1, 3), (3, 1), (5, 2)]),
                    st.booleans() | st.just(True),
                ),
                min_size=1,
                max_size=7,
            )
        ),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "norm_type": draw(st.sampled_from([INF, 0.5, 1.0, 2.0, 3.0, -INF])),
        "factor": draw(st.sampled_from([0.0, 0.1, 0.9, 1.1, 1e6])),
        "way": draw(st.sampled_from([*WAYS, "value hook", "value function"])),
        "seed": draw(st.integers(0, 99)),
    }


def make(example, meshes):
    params = []
    for index, ((placement, mesh), shape, given_) in enumerate(
        example["chosen"]
    ):
        param = placed(
            placement,
            None if mesh is None else meshes[mesh],
            shape,
            example["seed"] + index,
            example["dtype"],
        )
        if not given_:
            param.grad = None
        params.append(param)
    return params


def check_example(example, meshes):
    params = make(example, meshes)
    way, norm_type = example["way"], example["norm_type"]
    if not reduced(params):
        return
    if way.startswith("value"):
        limit = example["factor"]
        expected = [grad.clamp(-limit, limit) for grad in reduced(params)]
        clip_values(way.split()[1], params, limit)
        for index, (found, wanted) in enumerate(
            zip(reduced(params), expected, strict=True)
        ):
            check(torch.equal(found, wanted), index, found, "for", wanted)
        return
    norm = true_norm(reduced(params), norm_type).item()
    max_norm = example["factor"] * norm
    check_clips(lambda *args: clip(way, *args), params, max_norm, norm_type)


@case("random")
def at_random():
    meshes = mesh_of(2), mesh_of(2, names="b"), mesh_of(1, 2, names="cd")

    @settings(
        max_examples=400,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(examples())
    def run(example):
        before = len(failures)
        check_example(example, meshes)
        if len(failures) > before:
            failures[before] = f"{example}: {failures[before]}"

    run()


# Process groups that are destroyed and made again.


@case("renewed", way=["hook", "function", "halves"], norm_type=[2.0, INF])
def new_groups(way, norm_type):
    """A new mesh equals the old one, and has other process groups."""
    params = [placed(Shard(0), mesh_of(2), seed=seed) for seed in range(3)]
    optimizer = torch.optim.SGD(params)
    hook = norm_hook(norm_type=norm_type)
    old = params[0].grad.device_mesh
    for step in range(3):
        whole = [randn((4, 6), seed=10 * step + seed) for seed in range(3)]
        mesh = mesh_of(2)
        check(mesh == old and mesh is not old, "no other mesh")
        for param, grad in zip(params, whole, strict=True):
            param.grad = distribute_tensor(grad, mesh, [Shard(0)])
        with mock.patch.object(
            dist, "all_reduce", wraps=dist.all_reduce
        ) as all_reduce:
            if way == "hook":
                run_hook(hook, optimizer)
                total = hook.total_norm
            else:
                total = full(clip(way, params, CLIPS, norm_type))
        check_close("total", total, true_norm(whole, norm_type))
        groups = [
            group
            for _, args, kwargs in all_reduce.mock_calls
            for group in (*args[2:], *kwargs.values())
        ]
        check(len(groups) == 1, groups)
        check(groups[0] is mesh.get_group(), step, "a destroyed group is used")
        renew()


def renew():
    """Leaves the process group and makes another one."""
    if not _stores:  # The first one serves those that follow.
        _stores.append(dist.distributed_c10d._get_default_store())
    _stores.append(dist.PrefixStore(f"again{len(_stores)}", _stores[0]))
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo",
        store=_stores[-1],
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=20),
    )


_stores = []


if __name__ == "__main__":
    main(*sys.argv[1:])
