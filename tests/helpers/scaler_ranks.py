"""Each rank's program in test_scaler.py: FSDP1 under a GradScaler."""

import math

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

import robo_orchard_fasthooks as ours
from helpers import processes
from helpers.fp16 import FP16


def fails(hook, args, error):
    try:
        with hook.begin("on_step", args):
            pass
    except error:
        return True
    return False


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    accelerator = FP16()
    model = FullyShardedDataParallel(
        torch.nn.Linear(4, 3),
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    hook = ours.GradientClippingHookConfig(
        clip_mode="norm", max_norm=1.0, error_if_nonfinite=True
    )()
    args = ours.PipelineHookArgs(accelerator, optimizer=optimizer, model=model)

    def backward(factor=1.0):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).sum() * factor
        accelerator.scaler.scale(loss).backward()
        return [grad.clone() for grad in grads()]

    def grads():
        # A rank need not have a part of each of them.
        return [p.grad for p in model.parameters() if p.grad is not None]

    # Of 15 elements, each 2 without the scale.
    expected = math.sqrt(15 * 4)
    for change, factor, error in [
        ({"norm_type": 0}, 1.0, ValueError),
        ({}, math.inf, RuntimeError),
    ]:
        before = backward(factor)
        old = {name: getattr(hook, name) for name in change}
        vars(hook).update(change)
        for _ in range(2):
            assert fails(hook, args, error)
            for grad, was in zip(grads(), before, strict=True):
                torch.testing.assert_close(
                    grad, was, rtol=0, atol=0, equal_nan=True
                )
        vars(hook).update(old)
        backward()
        assert not fails(hook, args, Exception)
        torch.testing.assert_close(hook.total_norm.item(), expected)
        accelerator.scaler.step(optimizer)
        accelerator.scaler.update()
    print(f"rank {dist.get_rank()} works", flush=True)
    processes.end_rank()


if __name__ == "__main__":
    main()
