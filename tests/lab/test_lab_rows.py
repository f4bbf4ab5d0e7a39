"""The rows of tests of dispatch, on upstream's classes with install on.

What those tests say of every `lib` and of `ours` holds for them too.
"""

from types import SimpleNamespace

import pytest
import test_grad_clip
import test_mixin

import conftest
import test_dispatch
from robo_orchard_fasthooks import _dispatch, lab

# Tests that compare ours to what is not installed, or say what only ours has.
LEFT_OUT = {
    *("TestDescribe", "test_any_callable_can_be_shown"),
    # 0.4's arguments have no `exception`.
    *("TestException",),
    *("test_remove_unregisters", "test_stop_iteration_of_a_hook_stays_one"),
    *("test_repr_is_laid_out_as_upstream_s", "test_upstream_s_refuses_ours"),
    *("test_name_and_repr", "test_types", "test_in_from_hooks"),
    *("test_refuses_what_cannot_be_iterated", "test_the_wrong_order"),
    "test_a_hook_that_unregisters_itself",
}


@pytest.fixture(autouse=True)
def ours():
    theirs = conftest.LIBRARIES["upstream"]
    with lab.install():
        yield SimpleNamespace(
            **{
                **vars(theirs),
                "name": "ours",
                "HookContextChannel": _dispatch.LabChannel,
                "OptimizerHook": lambda cfg=None: theirs.OptimizerHook(cfg),
                "RemoveableHandle": _dispatch.RemoveableHandle,
            }
        )


@pytest.fixture
def lib(ours):
    return ours


def without(cls):
    """A class of tests but for those left out."""
    left_out = LEFT_OUT.intersection(vars(cls))
    return type(cls.__name__, (cls,), dict.fromkeys(left_out))


for name, value in {**vars(test_dispatch), **vars(test_mixin)}.items():
    if name.startswith("__") or name in LEFT_OUT:
        continue
    globals().setdefault(
        name, without(value) if name.startswith("Test") else value
    )

accelerator, step = test_grad_clip.accelerator, test_grad_clip.step
test_norm, test_value = test_grad_clip.test_norm, test_grad_clip.test_value
test_settings_changed_on_the_hook_count = (
    test_grad_clip.test_settings_changed_on_the_hook_count
)
test_nothing_while_gradients_accumulate = (
    test_grad_clip.test_nothing_while_gradients_accumulate
)
test_parameters_without_gradients_are_left_out = (
    test_grad_clip.test_parameters_without_gradients_are_left_out
)
