"""What is kept between calls, also after process groups were renewed."""

import gc
import weakref
from types import FunctionType, ModuleType
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

from distributed.checks import (
    CLIPS,
    INF,
    assert_close,
    full,
    local,
    mesh_of,
    norm_hook,
    randn,
    run_hook,
    true_norm,
)
from distributed.placed import IN_EVERY_WAY, assert_clips, clip, placed
from distributed.ranks import TIMEOUT
from robo_orchard_fasthooks._clipping.local import LocalPlan
from robo_orchard_fasthooks._clipping.mesh import MeshGroups


@IN_EVERY_WAY
def test_other_gradients_of_as_many(way):
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
        assert_clips(way, params, CLIPS)


@IN_EVERY_WAY
def test_a_plain_gradient_where_a_dtensor_was(way):
    """The spec of the DTensor is freed, and the plain gradient has none."""
    mesh = mesh_of(2)
    params = [placed(Shard(0), mesh, seed=seed) for seed in range(2)]
    clip(way, params, CLIPS)
    params[1] = placed(None, mesh, seed=2)
    gc.collect()
    assert_clips(way, params, CLIPS)


@pytest.mark.parametrize("way", ["function", "halves"])
def test_nothing_is_kept_alive(way):
    """No tensor of the caller, and no process group by way of a mesh."""
    mesh = mesh_of(2)
    params = [placed(p, mesh) for p in (Shard(0), Partial(), None, Shard(1))]
    clip(way, params, CLIPS)
    plans = [
        each
        for each in gc.get_objects()
        if type(each) in (LocalPlan, MeshGroups)
    ]
    assert plans
    for each in reachable(plans):
        assert not isinstance(each, (DeviceMesh, DTensor, nn.Parameter))
    found = [
        weakref.ref(each)
        for param in params
        for each in (param, param.grad, local(param.grad))
    ]
    del params
    gc.collect()
    assert all(ref() is None for ref in found)


def reachable(start):
    """All objects that some keep alive, but for modules and classes."""
    found, waiting = {}, [*start]
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


# The last test, since others need the first process group.


@IN_EVERY_WAY
@pytest.mark.parametrize("norm_type", [2.0, INF])
def test_new_groups(way, norm_type):
    """A new mesh equals the old one, and has other process groups."""
    params = [placed(Shard(0), mesh_of(2), seed=seed) for seed in range(3)]
    optimizer = torch.optim.SGD(params)
    hook = norm_hook(norm_type=norm_type)
    old = params[0].grad.device_mesh
    for step in range(3):
        whole = [randn((4, 6), seed=10 * step + seed) for seed in range(3)]
        mesh = mesh_of(2)
        assert mesh == old and mesh is not old
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
        assert_close(total, true_norm(whole, norm_type))
        groups = [
            group
            for _, args, kwargs in all_reduce.mock_calls
            for group in (*args[2:], *kwargs.values())
        ]
        assert len(groups) == 1
        assert groups[0] is mesh.get_group()
        renew()


def renew():
    """Leaves the process group and makes another one."""
    store = dist.distributed_c10d._get_default_store()
    rank, size = dist.get_rank(), dist.get_world_size()
    dist.barrier()
    dist.destroy_process_group()
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore("again", store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
