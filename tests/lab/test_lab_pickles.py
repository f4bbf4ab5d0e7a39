"""Pickles made with `lab.install` on and off."""

import pickle

import pytest
from robo_orchard_core.utils import hook as core

import upstream
from helpers.lab import HookContext, PipelineHooks, train
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
