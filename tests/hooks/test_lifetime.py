"""Memory, threads and shutdown; each case is a process of its own."""

import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import gc, sys, threading, weakref
from robo_orchard_fasthooks import HookContext, PipelineHookArgs, PipelineHooks

class Direct(HookContext):
    def before(self, args): pass
    def after(self, args): pass

def quiet(args): pass
def fail(args): raise ValueError
def make(*callbacks):
    hooks = PipelineHooks()
    for each in callbacks:
        hooks.register_hook("on_step", each)
    return hooks
def between(**callbacks): return HookContext.from_callable(**callbacks)
args = PipelineHookArgs(None)

def grows(run, count):
    gc.collect()
    gc.disable()
    run(1000)  # Fills the interpreter's free lists, which stay as they are.
    before = sys.getallocatedblocks()
    run(count)
    grown = sys.getallocatedblocks() - before
    assert grown < 20, f"{grown} blocks more after {count} repetitions"
"""

# What is repeated, and how often. With gc off, so that a cycle is a leak.
REPEATED = {
    "no hooks": ("hooks = make()", "with hooks.begin('on_step', args): pass"),
    "from callables": (
        "hooks = make(between(before=quiet, after=quiet))",
        "with hooks.begin('on_step', args): pass",
    ),
    "subclasses": (
        "hooks = make(Direct())",
        "with hooks.begin('on_step', args): pass",
    ),
    "foreign arguments": (
        "hooks = make(Direct())",
        "with hooks.begin('on_step', {}): pass",
    ),
    "a scope that is not entered": (
        "hooks = make(Direct())",
        "hooks.begin('on_step', args)",
    ),
    "a failing body": (
        "hooks = make(Direct())",
        """
        try:
            with hooks.begin('on_step', args): raise ValueError
        except ValueError: pass
        """,
    ),
    "a failing before": (
        "hooks = make(Direct(), between(before=fail))",
        """
        try:
            with hooks.begin('on_step', args): pass
        except ValueError: pass
        """,
    ),
    "a failing after": (
        "hooks = make(Direct(), between(after=fail))",
        """
        try:
            with hooks.begin('on_step', args): raise KeyError
        except ValueError: pass
        """,
    ),
    "an unknown channel": (
        "hooks = make()",
        """
        try: hooks.begin('nope', args)
        except KeyError: pass
        """,
    ),
    "a decorator": (
        "hooks = make(Direct())",
        "hooks.begin('on_step', args)(quiet)(1)",
    ),
    "arguments": (
        "",
        """
        made = PipelineHookArgs(args, 1, batch=made_before)
        made.extra = 1
        copied = made.copy_with_updates(batch=1, epoch_id=2, extra=3)
        vars(copied), repr(copied), copied == made
        """,
    ),
    "refused arguments": (
        "",
        """
        for call in (
            lambda: PipelineHookArgs(),
            lambda: PipelineHookArgs(1, nope=2),
            lambda: args.copy_with_updates(batch=1, nope=2),
        ):
            try: call()
            except (TypeError, AttributeError): pass
        """,
    ),
    "registering": (
        "hooks, hook = make(), Direct()",
        """
        handle = hooks.register_hook('on_step', hook)
        handle()
        handle.remove()
        """,
    ),
    "merging": (
        "hooks, other = make(), make(Direct())",
        "hooks.register_pipeline_hooks(other).remove()",
    ),
}
COUNTS = dict.fromkeys(
    ("no hooks", "from callables", "subclasses", "a failing body"), 1_000_000
)

ONCE = {
    "a step that ran out of memory gives its batch back": """
        class Batch: pass
        hooks = make(Direct(), between(after=lambda args: args.exception))
        def step():
            batch = Batch()
            freed.append(weakref.ref(batch))
            args = PipelineHookArgs(None, batch=batch)
            with hooks.begin("on_step", args), hooks.begin("on_step", args):
                raise MemoryError
        freed = []
        gc.disable()
        for _ in range(3):
            try:
                step()
            except MemoryError:
                pass
            assert freed[-1]() is None
    """,
    "hooks and channels die with their owner": """
        hook, hooks = Direct(), make()
        handle = hooks.register_hook("on_step", hook)
        with hooks.begin("on_step", args): pass
        dead = [weakref.ref(x) for x in (hook, hooks, hooks.hooks["on_step"])]
        gc.disable()
        del hook, hooks, handle
        assert [reference() for reference in dead] == [None] * 3
    """,
    "a suspended generator in a cycle is collected": """
        log = []
        hooks = make(between(after=log.append))
        class Holder: pass
        def run(holder):
            with hooks.begin("on_step", holder):
                yield
        holder = Holder()
        holder.generator = run(holder)
        next(holder.generator)
        dead = weakref.ref(holder)
        del holder
        gc.collect()
        assert len(log) == 1
        log.clear()
        gc.collect()
        assert dead() is None
    """,
    "a dropped generator runs the afters": """
        log = []
        hooks = make(between(after=lambda args: log.append(args.exception)))
        def run():
            with hooks.begin("on_step", args):
                yield
        generator = run()
        next(generator)
        del generator
        assert [type(error) for error in log] == [GeneratorExit]
        assert args.exception is None
    """,
    "two hundred nested scopes": """
        log = []
        hooks = make(
            between(
                before=lambda args: log.append(args.epoch_id),
                after=lambda args: log.append(-args.epoch_id),
            )
        )
        def nest(depth):
            with hooks.begin("on_step", PipelineHookArgs(None, depth)):
                if depth == 200:
                    raise ValueError
                nest(depth + 1)
        for _ in range(3):
            log.clear()
            try:
                nest(1)
            except ValueError:
                pass
            assert log == [*range(1, 201), *range(-200, 0)]
    """,
    "a long chain is freed": """
        hooks = make()
        for chain in ("extra", "batch", "scope"):
            last = None
            for _ in range(20_000):
                if chain == "scope":
                    last = hooks.begin("on_step", last)
                    continue
                args = PipelineHookArgs(None)
                setattr(args, chain, last)
                last = args
            args = last = None
    """,
    "endless recursion is a RecursionError": """
        hooks = make(between(before=lambda args: enter()))
        def enter():
            with hooks.begin("on_step", args): pass
        for _ in range(3):
            try:
                enter()
            except RecursionError:
                continue
            raise AssertionError
    """,
    "four threads dispatch while hooks come and go": """
        sys.setswitchinterval(1e-5)
        counts = [0] * 4
        def count(args): counts[args.epoch_id] += 1
        hooks = make(between(before=count, after=count))
        done = threading.Event()
        def work(thread):
            args = PipelineHookArgs(None, thread)
            for _ in range(20_000):
                with hooks.begin("on_step", args) as given:
                    assert given is args
        def change():
            while not done.is_set():
                hooks.register_hook("on_step", Direct()).remove()
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        changing = threading.Thread(target=change)
        for thread in (*threads, changing): thread.start()
        for thread in threads: thread.join()
        done.set()
        changing.join()
        assert counts == [40_000] * 4, counts
    """,
    "the interpreter ends with everything alive": """
        hooks = make(Direct(), between(before=quiet, after=quiet))
        def run():
            with hooks.begin("on_step", args):
                yield
        generator = run()
        next(generator)
        scope = hooks.begin("on_step", args)
        scope.__enter__()
        fresh = hooks.begin("on_step", args)
        handle = hooks.register_hook("on_step", Direct())
        args.extra = args.batch = args
        def spin():
            while True:
                with hooks.begin("on_step", args): pass
        threading.Thread(target=spin, daemon=True).start()
    """,
}


def run(source):
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("case", REPEATED)
def test_memory_does_not_grow(case):
    setup, body = REPEATED[case]
    body = textwrap.indent(textwrap.dedent(body).strip(), "        ")
    count = COUNTS.get(case, 100_000)
    run(
        f"{setup}\nmade_before = [1]\n"
        f"def repeat(count):\n    for _ in range(count):\n{body}\n"
        f"grows(repeat, {count})\n"
    )


@pytest.mark.parametrize("case", ONCE)
def test_lifetime(case):
    run(ONCE[case])


def test_a_long_chain_of_arguments_is_freed():
    """Without a C stack frame for each of them."""
    script = """
from robo_orchard_fasthooks import PipelineHookArgs
last = None
for _ in range(300_000):
    args = PipelineHookArgs(None)
    args.previous = last
    last = args
del args, last
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
