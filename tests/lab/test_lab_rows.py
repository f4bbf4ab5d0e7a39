"""The rows of tests of dispatch, on RoboOrchardLab's classes with install on.

What those tests say of every `lib` and of `ours` holds for 0.4.0, and for the
stand-in of 0.5, too.
"""

import contextlib
from types import SimpleNamespace

import pytest
import test_grad_clip
import test_mixin

import conftest
import test_dispatch
from helpers import standin
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


# 0.5 says so whenever one is made.
pytestmark = [
    pytest.mark.filterwarnings("ignore:GradientClippingHook is kept"),
    pytest.mark.filterwarnings("ignore:OptimizerHook does nothing"),
]

VERSIONS = {
    "0.4.0": lambda: contextlib.nullcontext(conftest.LIBRARIES["upstream"]),
    "0.5": standin.imported,
}


# 0.5 has a seventh channel, an OptimizerHook that does nothing, and arguments
# that say by themselves where gradients are complete.
ONLY_ON_0_4 = {
    "test_subclasses_and_multiple_inheritance",
    "test_is_a_key_error_that_lists_the_channels",
    "test_hooks_and_configs_in_any_iterable",
    "test_takes_upstream_s_hooks_and_configs",
    "test_that_is_made_an_error_adds_nothing",
    "test_by_register_hook",
    "test_of_subclasses",
    "test_the_right_order_and_one_alone",
    "test_nothing_while_gradients_accumulate",
}


def pytest_generate_tests(metafunc):
    only = metafunc.function.__name__ in ONLY_ON_0_4
    versions = ["0.4.0"] if only else [*VERSIONS]
    metafunc.parametrize("ours", versions, indirect=True)


@pytest.fixture(autouse=True)
def ours(request):
    with VERSIONS[request.param]() as theirs, lab.install():
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
