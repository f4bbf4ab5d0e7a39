"""Gathers the profiles of all ranks."""

import json
from datetime import timedelta

import torch.distributed as dist
from accelerate import Accelerator

from robo_orchard_fasthooks._profiling.profile import Profile

_PREFIX = "robo_orchard_fasthooks/profile"
_calls = 0


def gather(
    profile: Profile, accelerator: Accelerator, timeout: float
) -> list[Profile]:
    """Returns the profile of each rank; `timeout` is in seconds."""
    global _calls
    if accelerator.num_processes == 1:
        return [profile]
    # Not a collective operation, which would hang if a rank did not join it.
    store = dist.distributed_c10d._get_default_store()
    ranks = range(accelerator.num_processes)
    mine = accelerator.process_index
    keys = [f"{_PREFIX}/{_calls}/{rank}" for rank in ranks]
    store.set(keys[mine], json.dumps(profile))
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except RuntimeError as error:
        missing = [rank for rank in ranks if not store.check([keys[rank]])]
        store.delete_key(keys[mine])  # The next call uses these keys again.
        if not missing:
            raise
        raise RuntimeError(
            "every rank has to call table(reduce=accelerator), but within "
            f"{timeout:g} s these ranks did not: {str(missing)[1:-1]}"
        ) from error
    found = [json.loads(store.get(key)) for key in keys]
    # Every rank has made this call, so all have read the previous keys.
    store.delete_key(f"{_PREFIX}/{_calls - 1}/{mine}")
    _calls += 1
    return found
