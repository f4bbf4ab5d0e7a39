"""When clipping is captured in a CUDA graph and replayed.

A GPU is not needed: a stand-in takes the place of the graph. Everything that
is asserted of gradients is torch's own result.
"""

import ctypes
import gc
import threading
import weakref
from contextlib import contextmanager, nullcontext, suppress

import pytest
import torch
from accelerate import Accelerator

import robo_orchard_fasthooks
from helpers.fake_graph import CALLS_AT_REST, CAPTURES, GRAPHS, FakeGraphs
from helpers.gradients import same_bits
from robo_orchard_fasthooks._snapshot import Snapshot
from robo_orchard_fasthooks.clip import clip_grad_norm_, clip_grad_value_

SHAPES = ((3, 4), (5,), (), (2, 2, 2))


@pytest.fixture
def graphs(monkeypatch):
    return FakeGraphs(monkeypatch)


def parameters(dtypes=(torch.float32,)):
    """Parameters with gradients."""
    params = [
        torch.nn.Parameter(torch.zeros(s, dtype=dtypes[n % len(dtypes)]))
        for n, s in enumerate(SHAPES)
    ]
    for param in params:
        param.grad = torch.zeros_like(param)
    return params


class Clips:
    """Clips by a function and asserts that the result is torch's."""

    def __init__(self):
        self.seed = 0
        self.norms = []

    def norm(self, params, max_norm=1.0, norm_type=2.0, **kwargs):
        expected = self.fill(params)
        total = torch.nn.utils.clip_grad_norm_(expected, max_norm, norm_type)
        got = clip_grad_norm_(
            params, max_norm, norm_type, cuda_graph=True, **kwargs
        )
        assert same_bits(got, total)
        self.norms = [*self.norms[-9:], (got, total)]
        # No later call has changed an earlier result.
        assert all(same_bits(*pair) for pair in self.norms)
        self.assert_same(params, expected)

    def value(self, params, clip_value=0.5):
        expected = self.fill(params)
        torch.nn.utils.clip_grad_value_(expected, clip_value)
        assert clip_grad_value_(params, clip_value, cuda_graph=True) is None
        self.assert_same(params, expected)

    def fill(self, params):
        """New values in the same memory, and a copy of all."""
        self.seed += 1
        generator = torch.Generator().manual_seed(self.seed)
        copies = []
        for param in params:
            # A gradient may have become other than its parameter.
            like = param if param.grad is None else param.grad
            copies.append(torch.nn.Parameter(like.detach().clone()))
            if param.grad is not None:
                shape = param.grad.shape
                param.grad.copy_(torch.randn(shape, generator=generator))
                copies[-1].grad = param.grad.clone()
        return copies

    def assert_same(self, params, expected):
        for param, copy in zip(params, expected, strict=True):
            if param.grad is not None:
                assert same_bits(param.grad, copy.grad)


@pytest.fixture
def clips():
    return Clips()


@pytest.mark.parametrize("clip_by", ["norm", "value"])
@pytest.mark.parametrize(
    "dtypes", [(torch.float32,), (torch.float64, torch.bfloat16)], ids=str
)
def test_from_the_fourth_call_on(graphs, clips, clip_by, dtypes):
    params = parameters(dtypes)
    seen = []
    for _ in range(6):
        getattr(clips, clip_by)(params)
        seen.append((graphs.attempts, graphs.replays))
    assert seen == [(0, 0), (0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]


def other_addresses(params, *_):
    for param in params:
        param.grad = param.grad.clone()


def put(param, grad):
    param.grad, param.data = None, torch.zeros_like(grad)
    param.grad = grad


@pytest.mark.parametrize(
    ("clip_by", "dlpack"), [("norm", True), ("value", True), ("norm", False)]
)
@pytest.mark.parametrize(
    "change",
    [
        other_addresses,
        lambda p, _: other_addresses(p[-1:]),
        lambda params, graphs: setattr(graphs, "stream", 1),
        lambda p, _: put(p[0], p[0].grad.as_strided((3, 4), (1, 3))),
        lambda p, _: put(p[1], p[1].grad.view(5, 1)),
        lambda p, _: put(p[1], p[1].grad[:4]),
        lambda p, _: put(p[1], p[1].grad.view(torch.half)[:5]),
        lambda p, _: p.pop(),
        lambda p, _: setattr(p[1], "grad", None),
        lambda p, _: p[1].grad.resize_(2),
        lambda p, _: setattr(
            p[0].grad, "data", p[0].grad.as_strided((3, 4), (1, 3))
        ),
        lambda p, _: setattr(p[0].grad, "data", p[0].grad.view(2, 6)),
        lambda p, _: setattr(
            p[1].grad, "data", p[1].grad.view(torch.half)[:5]
        ),
        lambda p, _: torch.nn.ParameterList(p).half(),
        lambda p, _: p.append(p.pop(1)),
    ],
    ids=[
        *("other addresses", "another address", "another stream"),
        *("other strides", "another shape", "fewer elements"),
        *("another dtype", "fewer", "none", "resized"),
        *("other data's strides", "other data's shape", "other data's dtype"),
        *("half()", "another order"),
    ],
)
def test_gradients_that_have_changed_are_not_replayed(
    graphs, clips, monkeypatch, change, clip_by, dlpack
):
    if not dlpack:
        monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__")
    params, clip = parameters(), getattr(clips, clip_by)
    for _ in range(4):
        clip(params)
    assert graphs.replays == 1
    change(params, graphs)
    for _ in range(3):
        clip(params)
    assert graphs.replays == 1
    clip(params)
    assert (graphs.attempts, graphs.replays) == (2, 2)


@pytest.mark.parametrize(
    ("first", "second"),
    [((1.0,), (1.5,)), ((1.0,), (1.0, float("inf"))), ((0.0,), (-0.0,))],
)
def test_other_settings_are_not_replayed(graphs, clips, first, second):
    params = parameters()
    for _ in range(4):
        clips.norm(params, *first)
    clips.norm(params, *second)
    assert graphs.replays == 1
    clips.norm(params, *first)
    assert (graphs.attempts, graphs.replays) == (1, 2)


def test_autocast_is_not_that_of_the_capture(graphs, clips):
    params = parameters()
    for _ in range(4):
        clips.norm(params)
    torch.set_autocast_enabled("cuda", True)
    try:
        clips.norm(params)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert graphs.replays == 1
    clips.norm(params)
    assert graphs.replays == 2


def test_another_device_is_current(graphs, clips, monkeypatch):
    current = [1]

    @contextmanager
    def device(its):
        current.append(its.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    graphs.after_replay = lambda: seen.append(current[-1])
    params, seen = parameters(), []
    for _ in range(5):
        clips.norm(params)
    assert (seen, current) == ([0, 0], [1])


def test_addresses_that_alternate(graphs, clips):
    """As two lists of one length do, and the allocator's memory may."""
    lists = [parameters(), parameters()]
    for _ in range(6):
        for params in lists:
            clips.norm(params)
    assert (graphs.attempts, graphs.replays) == (2, 6)


def test_captures_that_do_not_pay_end_for_long(graphs, clips):
    """Of gradients that move after every third call."""
    params, kept = parameters(), []
    for _ in range(2 * CAPTURES):
        kept.append([param.grad for param in params])
        other_addresses(params, graphs)
        for _ in range(3):
            clips.norm(params)
    assert (graphs.attempts, graphs.replays) == (CAPTURES, 0)
    assert not graphs.alive
    for _ in range(CALLS_AT_REST):
        clip_grad_norm_(params, 1.0, cuda_graph=True)
    assert graphs.attempts <= CAPTURES + 1
    assert graphs.replays > 0


@pytest.mark.parametrize(("every", "captures"), [(1, 0), (50, 4)])
def test_a_bound_that_changes(graphs, clips, every, captures):
    """At every step, as of a schedule, or seldom."""
    params = parameters()
    for step in range(200):
        clips.norm(params, 1.0 + step // every)
    assert graphs.attempts == captures
    assert graphs.replays == (200 - 3 * captures if captures else 0)


def test_graphs_are_bounded(graphs, clips):
    """The one that was used last is kept."""
    params, sets = parameters(), []
    for _ in range(2 * GRAPHS):
        other_addresses(params, graphs)
        sets.append([param.grad for param in params])

    def clip(grads):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        clips.norm(params)
        return graphs.replays

    for grads in sets:
        for _ in range(30):
            clip(grads)
        assert len(graphs.alive) <= GRAPHS
        assert clip(sets[0]) == clip(sets[0]) - 1
    assert graphs.attempts == len(sets)
    replays = graphs.replays
    assert clip(sets[1]) == replays


def test_a_capture_that_fails(graphs, clips):
    params = parameters()
    graphs.fails = True
    for _ in range(2):
        clips.norm(params)
    with pytest.warns(UserWarning, match="captured: RuntimeError: capture"):
        clips.norm(params)
    graphs.fails = False
    for _ in range(2 * CALLS_AT_REST):
        clip_grad_norm_(params, 1.0, cuda_graph=True)
    assert (graphs.attempts, graphs.replays) == (1, 0)


@pytest.mark.parametrize("clip_by", ["norm", "value"])
def test_a_replay_that_fails(graphs, clips, clip_by):
    params, clip = parameters(), getattr(clips, clip_by)
    for _ in range(4):
        clip(params)
    graphs.breaks = True
    with pytest.warns(UserWarning, match="replayed: RuntimeError: replay"):
        clip(params)
    assert not graphs.alive
    graphs.breaks = False
    for _ in range(5):
        clip(params)
    assert (graphs.attempts, graphs.replays) == (1, 1)


def test_a_warning_that_is_an_error(graphs, clips):
    """The gradients have been clipped, once."""
    params = parameters()
    graphs.fails = True
    for _ in range(2):
        clips.norm(params)
    expected = clips.fill(params)
    torch.nn.utils.clip_grad_norm_(expected, 1.0)
    with pytest.raises(UserWarning):  # Warnings are errors in all tests.
        clip_grad_norm_(params, 1.0, cuda_graph=True)
    clips.assert_same(params, expected)
    clips.norm(params)


class Training:
    """A hook with cuda_graph=True, and an optimizer."""

    def __init__(self, accelerator=None, cuda_graph=True):
        self.accelerator = accelerator or Accelerator(cpu=True)
        self.hook = robo_orchard_fasthooks.GradientClippingHookConfig(
            clip_mode="norm", max_norm=1.0, cuda_graph=cuda_graph
        )()
        self.params = parameters()
        self.optimizer = torch.optim.SGD(self.params, lr=1)
        self.clips = Clips()

    def step(self):
        expected = self.clips.fill(self.params)
        sync = self.accelerator.sync_gradients
        if sync:
            total = torch.nn.utils.clip_grad_norm_(
                expected, self.hook.max_norm
            )
        args = robo_orchard_fasthooks.PipelineHookArgs(
            self.accelerator, optimizer=self.optimizer
        )
        with self.hook.begin("on_step", args):
            pass
        assert not sync or same_bits(self.hook.total_norm, total)
        self.clips.assert_same(self.params, expected)


def test_a_thread_that_comes_during_a_replay(graphs):
    """It neither waits nor replays: the first has yet to copy the norm."""
    training, failures = Training(), []
    for _ in range(3):
        training.step()

    def second():
        try:
            other = Training()
            other.hook, other.optimizer = training.hook, training.optimizer
            other.params = training.params
            other.step()
        except BaseException as error:
            failures.append(error)

    def meanwhile():
        graphs.after_replay = lambda: None
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(30)
        assert not thread.is_alive()

    graphs.after_replay = meanwhile
    with suppress(AssertionError):  # The thread has changed the gradients.
        training.step()
    assert not failures
    assert graphs.replays == 1
    training.step()
    assert graphs.replays == 2


def test_graphs_go_with_their_optimizer(graphs):
    training = Training()
    for _ in range(5):
        training.step()
    (graph,) = map(weakref.ref, graphs.alive)
    grads = [weakref.ref(param.grad) for param in training.params]
    other_addresses(training.params, graphs)
    # Neither the graph nor what was prepared for it holds gradients.
    gc.collect()
    assert not [grad for grad in grads if grad() is not None]
    assert graph() is not None
    optimizer = weakref.ref(training.optimizer)
    del training
    gc.collect()
    assert optimizer() is None
    assert graph() is None


@pytest.mark.parametrize("cuda_graph", [None, False])
def test_off(graphs, cuda_graph):
    """As by default; the hook may be told at any time."""
    training, params = Training(cuda_graph=cuda_graph), parameters()
    for _ in range(5):
        training.step()
        clip_grad_norm_(params, 1.0, cuda_graph=cuda_graph)
        clip_grad_value_(params, 1.0, cuda_graph=cuda_graph)
    assert graphs.attempts == 0
    training.hook.cuda_graph = True
    for _ in range(3):
        training.step()
    assert graphs.attempts == 1


def test_no_effect_on_a_cpu(clips):
    """Nothing of the graphs is replaced here."""
    params = parameters((torch.float32, torch.bfloat16))
    for _ in range(5):
        clips.norm(params)
        clips.value(params)
    Training().step()


@pytest.mark.parametrize("value", [float("nan"), 1.0])
def test_error_if_nonfinite(graphs, value):
    """The host reads the norm, so that it is never captured."""
    params = parameters()
    for _ in range(5):
        for param in params:
            param.grad.fill_(value)
        error = pytest.raises(RuntimeError, match="parameter 0")
        with nullcontext() if value == 1 else error:
            clip_grad_norm_(params, 1.0, 2.0, True, cuda_graph=True)
    assert graphs.attempts == 0


class Mine(torch.Tensor):
    pass


def shared(params):
    params.append(torch.nn.Parameter(torch.zeros(5)))
    params[-1].grad = params[1].grad


CHANGES = {
    "sparse": lambda p: setattr(p[1], "grad", p[1].grad.to_sparse()),
    "subclass": lambda p: setattr(p[1], "grad", Mine(p[1].grad)),
    "shared": shared,
    "complex": lambda p: put(p[0], torch.zeros(3, 4, dtype=torch.cfloat)),
    "transposed": lambda p: setattr(p[0], "grad", torch.zeros(4, 3).t()),
    "foreach=False": lambda p: None,
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("clip", [clip_grad_norm_, clip_grad_value_])
def test_what_is_not_for_a_graph(graphs, kind, clip):
    params = parameters()
    CHANGES[kind](params)
    foreach = False if kind == "foreach=False" else None
    for _ in range(5):
        with suppress(NotImplementedError):  # Of complex and sparse ones.
            clip(params, 1.0, foreach=foreach, cuda_graph=True)
    dense = kind == "transposed" or (
        kind == "complex" and clip is clip_grad_norm_
    )
    assert graphs.attempts == dense


@pytest.mark.parametrize("kind", ["sparse", "subclass"])
def test_what_is_no_longer_for_a_graph(graphs, kind):
    params = parameters()
    for _ in range(4):
        clip_grad_norm_(params, 1.0, cuda_graph=True)
    CHANGES[kind](params)
    with suppress(NotImplementedError):
        clip_grad_norm_(params, 1.0, cuda_graph=True)
    assert graphs.replays == 1


def test_a_snapshot_of_more_or_fewer_parameters():
    params = parameters()
    snapshot = Snapshot(params, torch.Tensor)
    lists = params, params[:-1], params * 2
    assert [*map(snapshot.matches, lists)] == [True, False, False]


def test_another_version_of_dlpack():
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    api = (ctypes.c_uint32 * 16)(2)

    class Kind:
        __dlpack_c_exchange_api__ = new(api, b"dlpack_exchange_api", None)

    with pytest.raises(AttributeError, match="version"):
        Snapshot([], Kind)


def test_dtypes_that_cannot_be_clamped(graphs):
    """Refused before any has changed, as without a graph."""
    params = [torch.nn.Parameter(torch.ones(3).double()) for _ in range(2)]
    params[1] = torch.nn.Parameter(torch.ones(3))
    for param in params:
        param.grad = param.detach().clone()
    with pytest.raises(NotImplementedError, match="gradient of parameter 1 "):
        clip_grad_value_(params, -1e300, cuda_graph=True)
    assert params[0].grad.tolist() == [1] * 3
