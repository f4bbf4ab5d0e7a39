"""Pickles made with `lab.install` on and off."""

import pickle

import pytest
from robo_orchard_core.utils import hook as core

import upstream
from helpers.lab import HookContext, PipelineHooks, train
from robo_orchard_fasthooks import _dispatch, lab


def pickled_hooks(protocol=None):
    """Pickles of hooks and of one of their channels."""
    hooks = PipelineHooks.from_hooks(
        [
            upstream.grad_clip.GradientClippingHookConfig(
                clip_mode="norm", max_norm=1
            ),
            upstream.optimizer.OptimizerHook(None),
        ]
    )
    hooks.register_hook("on_step", HookContext.from_callable("r", repr))
    channel = hooks.hooks["on_step"]
    return [pickle.dumps(each, protocol) for each in (hooks, channel)]


def state(channel):
    handlers = channel._context_handlers
    hooks = [(type(each), each.name, type(each._before)) for each in handlers]
    return {**vars(channel), "_context_handlers": (type(handlers), hooks)}


def loaded(pickles):
    """Everything that the loaded hooks and the channel hold."""
    hooks, channel = map(pickle.loads, pickles)
    assert type(hooks) is PipelineHooks
    channels = [*hooks.hooks.values(), channel]
    assert {type(each) for each in channels} == {core.HookContextChannel}
    return list(hooks.hooks), list(map(state, channels))


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_they_load_as_what_upstream_s_load_as(protocol):
    with lab.install():
        pickles = pickled_hooks(protocol)
    assert not any(b"fasthooks" in each for each in pickles)
    assert loaded(pickles) == loaded(pickled_hooks(protocol))


def test_made_without_they_load_with_install_on():
    data, _ = pickled_hooks()
    with lab.install():
        hooks = pickle.loads(data)
        merged = PipelineHooks.from_hooks([hooks])
        assert type(merged.hooks["on_step"]) is _dispatch.LabChannel
        for each in (hooks, merged):
            assert train(each) == pytest.approx([-0.6, -0.8])
