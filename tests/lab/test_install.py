"""`lab.install`, `uninstall` and `status`."""

import importlib
import inspect
import os
import re
import signal
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

import upstream
from helpers.lab import (
    CONSTRUCTION,
    HOOKS,
    NAMES,
    ORIGINALS,
    PipelineHooks,
    assert_same_installed,
    found,
    python_frames,
)
from robo_orchard_fasthooks import _dispatch, lab
from robo_orchard_fasthooks._lab.patching import Patch


class TestInstall:
    def test_replaces_and_puts_back_the_same_objects(self):
        for _ in range(2):
            lab.install()
            lab.install()
            try:
                status = lab.status()
                assert status.installed
                assert status.names == dict.fromkeys(NAMES, "replaced")
                changed = [n for n in NAMES if found(n) is not ORIGINALS[n]]
                assert changed == [n for n in NAMES if n != CONSTRUCTION]
            finally:
                lab.uninstall()
            assert all(found(name) is ORIGINALS[name] for name in NAMES)

    def test_the_outermost_context_manager_uninstalls(self):
        with lab.install():
            with lab.install():
                pass
            assert lab.status().installed
        assert not lab.status().installed

    def test_a_failing_body_uninstalls(self):
        with pytest.raises(ZeroDivisionError), lab.install():
            raise ZeroDivisionError
        assert not lab.status().installed

    def test_leaving_leaves_what_was_installed_anew(self):
        first = lab.install()
        lab.uninstall()
        with lab.install():
            with first:
                pass
            assert lab.status().installed

    def test_threads_install_once(self):
        barrier = threading.Barrier(4)

        def install(_):
            barrier.wait()
            lab.install()

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(install, range(4)))
        finally:
            sys.setswitchinterval(interval)
        assert lab.status().names == dict.fromkeys(NAMES, "replaced")
        lab.uninstall()

    def test_it_is_quiet_unless_asked(self, capsys):
        with lab.install():
            assert capsys.readouterr().out == ""
        for _ in range(2):
            with lab.install(), lab.install(verbose=True):
                assert capsys.readouterr().out == f"{lab.status()}\n"


class TestStatus:
    @pytest.mark.parametrize("on", [False, True])
    def test_in_print(self, released, on):
        version = metadata.version("robo_orchard_fasthooks")
        with lab.install():
            status = lab.status()
        if not on:
            status = lab.status()
        first, extension, support, *names = str(status).splitlines()
        assert first == (
            f"robo_orchard_fasthooks {version} is {'' if on else 'not '}"
            f"active in robo_orchard_lab {upstream.VERSION}"
        )
        assert extension == f"  compiled extension: {_dispatch.__file__}"
        assert support == (
            f"  robo_orchard_lab {upstream.VERSION}: {status.support}"
        )
        width = max(map(len, NAMES)) - len("robo_orchard_lab.")
        assert names == [
            f"  {name.removeprefix('robo_orchard_lab.'):<{width}}  "
            + ("replaced" if on else "original")
            for name in NAMES
        ]

    def test_a_patch_after_install_is_told_and_left(self):
        name = f"{HOOKS}.mixin.PipelineHooks.begin"
        lab.install()
        PipelineHooks.begin = patch = lambda *args: None
        try:
            assert lab.status().names == {
                **dict.fromkeys(NAMES, "replaced"),
                name: "patched by others since",
            }
            message = f"^{re.escape(name)} was patched after it had been"
            with pytest.warns(UserWarning, match=message) as caught:
                lab.uninstall()
            assert len(caught) == 1 and found(name) is patch
        finally:
            PipelineHooks.begin = ORIGINALS[name]


@pytest.fixture
def reload(monkeypatch):
    """Reloads one of RoboOrchardLab's modules, until the test ends."""
    folder = str(Path(upstream.mixin.__file__).parent)
    monkeypatch.setattr(sys.modules[HOOKS], "__path__", [folder])
    before = {}

    def run(name):
        module = getattr(upstream, name)
        before[module] = dict(vars(module))
        importlib.reload(module)

    yield run
    for module, names in before.items():
        vars(module).clear()
        vars(module).update(names)


class TestReload:
    @pytest.mark.parametrize("name", ["mixin", "grad_clip", "optimizer"])
    def test_it_is_told_and_renewed(self, reload, name):
        with lab.install():
            reload(name)
            gone = [each for each in NAMES if f".{name}." in each]
            originals = {each: found(each) for each in gone}
            replaced = dict.fromkeys(NAMES, "replaced")
            status = {**replaced, **dict.fromkeys(gone, "original")}
            assert gone and lab.status().names == status
            with lab.install():
                pass
            assert lab.status().names == replaced
            cls = upstream.mixin.PipelineHookArgs
            assert python_frames(lambda: cls(accelerator=None)) == []
            channels = upstream.mixin.PipelineHooks().hooks.values()
            assert {type(each).__module__ for each in channels} == {
                _dispatch.__name__
            }
        assert {each: found(each) for each in gone} == originals

    def test_uninstalling_puts_back_what_a_reload_did_not(self, reload):
        with lab.install():
            reload("mixin")

    def test_a_patch_of_what_was_reloaded_is_told_and_left(self, reload):
        name = f"{HOOKS}.mixin.PipelineHooks.begin"
        with lab.install():
            reload("mixin")
            patch = upstream.mixin.PipelineHooks.begin = lambda *args: None
            for state in ("original", "replaced"):
                names = lab.status().names
                assert names[name] == "patched by others since"
                assert names[CONSTRUCTION] == state
                lab.install()
        assert found(name) is patch

    def test_a_renewal_that_fails_changes_nothing(self, reload, monkeypatch):
        replace = Patch.replace

        def failing(self, undo):
            replace(self, undo)
            if self.path.endswith("from_hooks"):
                raise RuntimeError("no more")

        with lab.install():
            reload("mixin")
            before = lab.status().names
            monkeypatch.setattr(Patch, "replace", failing)
            with pytest.raises(RuntimeError, match="no more"):
                lab.install()
            assert lab.status().names == before


def test_a_fork_waits_until_all_is_replaced(monkeypatch):
    replace, within = Patch.replace, threading.Event()

    def waiting(self, undo):
        within.set()
        time.sleep(0.01)
        return replace(self, undo)

    monkeypatch.setattr(Patch, "replace", waiting)
    thread = threading.Thread(target=lab.install)
    thread.start()
    assert within.wait(60)
    with warnings.catch_warnings():
        # From 3.12 on: threads and fork() together may deadlock.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        lab.install()
        names = set(lab.status().names.values())
        os._exit(names != {"replaced"})
    assert os.waitpid(child, 0)[1] == 0
    thread.join(60)
    lab.uninstall()


class TestImporting:
    def test_without_roboorchardlab(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "robo_orchard_lab", None)
        with pytest.raises(
            ImportError, match="^RoboOrchardLab, which install.. accelerates"
        ) as raised:
            lab.install()
        assert raised.value.name == "robo_orchard_lab"
        assert not lab.status().installed

    def test_with_a_dependency_missing(self, monkeypatch, tmp_path, released):
        monkeypatch.delitem(sys.modules, f"{HOOKS}.grad_clip")
        monkeypatch.setattr(
            sys.modules[HOOKS], "__path__", [str(tmp_path)], raising=False
        )
        tmp_path.joinpath("grad_clip.py").write_text("import no_such_thing")
        with pytest.raises(
            ImportError,
            match=f"^RoboOrchardLab {upstream.VERSION} cannot be imported: .*"
            "no_such_thing",
        ) as raised:
            lab.install()
        assert raised.value.name == "no_such_thing"


@pytest.mark.parametrize(
    "get",
    [
        lambda: inspect.getsource(PipelineHooks.__init__),
        lambda: inspect.signature(PipelineHooks.__init__),
        lambda: inspect.getfullargspec(PipelineHooks.from_hooks).args,
        lambda: type(PipelineHooks()) is PipelineHooks,
        lambda: list(PipelineHooks().hooks),
        lambda: [c.name for c in PipelineHooks().hooks.values()],
        lambda: list(vars(PipelineHooks())),
        lambda: PipelineHooks(1),
    ],
)
def test_what_is_seen_of_pipeline_hooks_stays(get):
    assert_same_installed(get)
