"""Pickles made with `lab.install` on and off."""

import pickle
import sys

import pytest
from robo_orchard_core.utils import hook as core

import upstream
from helpers import processes
from helpers.lab import Args, HookContext, PipelineHooks, train
from robo_orchard_fasthooks import _dispatch, lab


def pickled_hooks():
    hooks = PipelineHooks.from_hooks(
        [
            upstream.grad_clip.GradientClippingHookConfig(
                clip_mode="norm", max_norm=1
            ),
            upstream.optimizer.OptimizerHook(None),
        ]
    )
    hooks.register_hook("on_step", HookContext.from_callable("r", repr))
    return hooks


def state(channel):
    return {
        **vars(channel),
        "_context_handlers": [
            (type(each), each.name, type(each._before))
            for each in channel._context_handlers
        ],
    }


PROTOCOLS = (0, 2, pickle.HIGHEST_PROTOCOL)


class TestPickles:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_load_as_what_upstream_s_load_as(self, protocol):
        loaded = []
        for install in (False, True):
            if install:
                lab.install()
            hooks = pickled_hooks()
            data = [
                pickle.dumps(each, protocol)
                for each in (hooks, hooks.hooks["on_step"])
            ]
            if install:
                lab.uninstall()
            assert not any(b"fasthooks" in each for each in data)
            hooks, channel = map(pickle.loads, data)
            assert type(hooks) is PipelineHooks
            for each in (*hooks.hooks.values(), channel):
                assert type(each) is core.HookContextChannel
            loaded.append(
                (
                    list(hooks.hooks),
                    *map(state, hooks.hooks.values()),
                    state(channel),
                    type(channel._context_handlers),
                )
            )
        assert loaded[0] == loaded[1]

    def test_made_without_load_with_install_on(self):
        data = pickle.dumps(pickled_hooks())
        with lab.install():
            hooks = pickle.loads(data)
            merged = PipelineHooks.from_hooks([hooks])
            assert type(merged.hooks["on_step"]) is _dispatch.LabChannel
            for each in (hooks, merged):
                assert train(each) == pytest.approx([-0.6, -0.8])

    def test_load_where_this_package_is_not(self, installed, tmp_path):
        for protocol in PROTOCOLS:
            hooks = pickled_hooks()
            what = hooks, hooks.hooks["on_step"], Args(accelerator=1)
            tmp_path.joinpath(str(protocol)).write_bytes(
                pickle.dumps(what, protocol)
            )
        program = """
import sys
from pathlib import Path
from unittest import mock

sys.modules["robo_orchard_fasthooks"] = None

import pickle
import torch
import upstream
from accelerate import Accelerator
from robo_orchard_core.utils.hook import HookContextChannel

for file in Path(sys.argv[1]).iterdir():
    hooks, channel, args = pickle.loads(file.read_bytes())
    assert type(hooks) is upstream.mixin.PipelineHooks
    assert type(args) is upstream.mixin.PipelineHookArgs
    for each in (*hooks.hooks.values(), channel):
        assert type(each) is HookContextChannel, type(each)
    assert channel is hooks.hooks["on_step"]
    param = torch.nn.Parameter(torch.zeros(2))
    param.grad = torch.tensor([3.0, 4.0])
    args.accelerator = Accelerator(cpu=True)
    args.optimizer = torch.optim.SGD([param], lr=1.0)
    args.lr_scheduler = mock.Mock()
    with hooks.begin("on_step", args):
        pass
    assert torch.allclose(param, torch.tensor([-0.6, -0.8]))
    args.lr_scheduler.step.assert_called_once_with()
print("loaded")
"""
        command = [sys.executable, "-c", program, str(tmp_path)]
        assert processes.run(command)[0] == "loaded\n"
