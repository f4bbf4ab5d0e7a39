"""Compiled hook dispatch: channels, scopes and handles.

`begin` returns a Scope, whose `_enter` runs the `before` callbacks and whose
`_exit` runs the `after` callbacks: both call `_run`, the loop over them.
"""

import copyreg
from copy import deepcopy
from functools import partial
from types import FunctionType, MethodType
from typing import TypeVar

from robo_orchard_core.utils import hook as core

cimport cython
from cpython.dict cimport PyDict_GetItemWithError, PyDict_Keys
from cpython.object cimport PyObject

from robo_orchard_fasthooks._args cimport PipelineHookArgs
from robo_orchard_fasthooks._record cimport Recorder, Stats

from robo_orchard_fasthooks._checks import check_hook
from robo_orchard_fasthooks._decorated import decorated
from robo_orchard_fasthooks._describe import add_note, channel_repr
from robo_orchard_fasthooks._pickling import reduce, slots

cdef extern from "Python.h":
    dict PyObject_GenericGetDict(object instance, void* context)
    object PyObject_CallMethodOneArg(object self, object name, object arg)
    object PyObject_CallOneArg(object callable, object arg)
    int PyObject_GenericSetAttr(object, object, PyObject*) except -1
    ctypedef struct PyTypeObject:
        unsigned int tp_version_tag
    PyTypeObject* Py_TYPE(object instance)
    ctypedef struct PyCodeObject:
        int co_flags
    PyObject* PyMethod_GET_FUNCTION(object method)
    PyObject* PyFunction_GET_CODE(object function)
    int CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
    # Without the error check of cpython.dict's declaration; see `begin`.
    PyObject* _find "PyDict_GetItemWithError"(dict, object) noexcept
    void PyErr_Clear()

T = TypeVar("T")
CallableType = TypeVar("CallableType")

cdef long long _recordings = 0  # In all channels.


cdef class Registrations:
    """The hooks of a channel, in the order of their registration."""

    # The hooks are the keys. The dictionary is changed and never replaced, so
    # that threads that register at the same time lose no hook.
    cdef dict _members
    # The members as a tuple, for dispatch; None from a change until the next
    # phase.
    cdef tuple _hooks
    cdef long long _changes
    # The class's version when there was no other `begin`; 0 if not known.
    cdef unsigned int _checked_version
    # Whether this is a LabChannel, which leaves `arg.exception` as it is, but
    # for one that sets it to an error and, as RoboOrchardLab 0.5, keeps it.
    cdef readonly bint _is_lab
    cdef readonly bint _publishes_exception
    # What times the hooks, or None, and the number of its recording, or 0.
    cdef readonly Recorder _recorder
    cdef long long _recording

    def __cinit__(self):
        self._members = {}

    cdef int _take_snapshot(self) except -1:
        cdef long long changes
        while self._hooks is None:
            # An allocation may run finalizers, and they register hooks.
            changes = self._changes
            hooks = tuple(PyDict_Keys(self._members))
            if changes == self._changes:
                self._hooks = hooks

    cdef int _drop_snapshot(self) except -1:
        self._changes += 1
        self._hooks = None

    @property
    def _context_handlers(self):
        self._take_snapshot()
        return self._hooks

    def __setattr__(self, name, value):
        PyObject_GenericSetAttr(self, name, <PyObject*>value)
        if name == "begin":
            self._checked_version = 0

    def __len__(self):
        return len(self._members)

    def __getitem__(self, item):
        return PyDict_Keys(self._members)[item]

    @cython.binding(False)  # A C method, which the interpreter calls fastest.
    def begin(self, arg):
        """begin($self, /, arg)
--

Returns a context manager that runs the hooks around the body of a `with`.

Args:
    arg: The object that every hook is called with, and that `with` yields.

Returns:
    AbstractContextManager: Can be entered once, or be a decorator.
"""
        return _open(self, arg)

    def register(self, hook):
        """Registers a hook at the end of the channel.

        Args:
            hook (HookContext): The hook, or any hashable object that has
                callable `before` and `after`. If an equal hook is registered,
                that one stays, at its position.

        Returns:
            RemoveableHandle: Calling or leaving it unregisters the hook.

        Raises:
            TypeError: The object is not a hook, or is not hashable.
        """
        _check_hook(hook)
        # First: if memory runs out, no hook may stay without a handle.
        handle = RemoveableHandle(partial(self._discard, (hook,)))
        try:
            self._members[hook] = None
        finally:
            self._drop_snapshot()
        return handle

    def register_hook_channel(self, channel):
        """Registers the hooks of another channel, in their order.

        If an error is raised, none of them has been registered.

        Args:
            channel (HookContextChannel): The other channel.

        Returns:
            RemoveableHandle: Calling or leaving it unregisters all of them.

        Raises:
            ValueError: The channels have different names.
            TypeError: An object in the other channel is not a hook, or is not
                hashable.
        """
        cdef tuple hooks = _hooks_to_merge(self, channel)
        cdef dict added = _without_members(hooks, self._members)
        handle = RemoveableHandle(partial(self._discard, hooks))
        try:
            # This uses the hashes stored in `added` and calls no `__hash__`.
            self._members.update(added)
        finally:
            self._drop_snapshot()
        return handle

    def unregister_all(self):
        """Unregisters all hooks."""
        self._members.clear()
        self._drop_snapshot()

    def _discard(self, hooks):
        try:
            for hook in hooks:
                self._members.pop(hook, None)
        finally:
            self._drop_snapshot()

    def __getstate__(self):
        handlers = self._context_handlers
        return {**vars(self), **slots(self), "_context_handlers": handlers}

    def __setstate__(self, state):
        if isinstance(state, tuple):  # As `object.__getstate__` returns it.
            state = {**(state[0] or {}), **(state[1] or {})}
        for name, value in state.items():
            if name == "_context_handlers":
                members = dict.fromkeys(value)
                self._members.clear()
                self._members.update(members)
                self._drop_snapshot()
            else:
                setattr(self, name, value)

    def __reduce__(self):
        return reduce(self)


cdef tuple _hooks_to_merge(object channel, object other):
    if other.name != channel.name:
        raise ValueError(
            f"Cannot register hook channel {other.name} to {channel.name}"
        )
    return tuple(other._context_handlers)


cdef dict _without_members(tuple hooks, object members):
    # Calls every method that merging does: errors come before any change.
    cdef dict added = {}
    for hook in hooks:
        _check_hook(hook)
        if hook not in members:
            added[hook] = None
    return added


def check_merge(list pairs):
    """Returns what merging would add to each channel, or raises its error."""
    cdef list added = []
    for channel, other in pairs:
        hooks = _hooks_to_merge(channel, other)
        if isinstance(channel, Registrations):
            members = (<Registrations>channel)._members
        else:
            members = getattr(channel, "_context_handlers", ())
        added.append(_without_members(hooks, members))
    return added


def undo_merge(list pairs, list added):
    """Unregisters the hooks that `check_merge` returned."""
    for (channel, _), hooks in zip(pairs, added):
        if isinstance(channel, Registrations):
            channel._discard(hooks)
        else:
            for hook in hooks:
                channel._context_handlers.discard(hook)


class HookContextChannel(Registrations, core.HookContextChannel[T]):
    """An ordered set of hooks that run around a part of the training loop.

    Args:
        name (str): The name of the channel.
    """

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return channel_repr(self, type(self))


class LabChannel(HookContextChannel[T]):
    """The channel of RoboOrchardLab's own PipelineHooks after `lab.install()`.

    It is pickled as robo_orchard_core's, to be loaded without this package.
    """

    def __repr__(self):
        return channel_repr(self, core.HookContextChannel)

    def __copy__(self):
        return lab_channel(self.__getstate__(), self._publishes_exception)

    def __deepcopy__(self, memo):
        memo[id(self)] = copy = lab_channel({}, self._publishes_exception)
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        return copy

    def __reduce__(self):
        original = core.HookContextChannel(self.name)
        original._context_handlers.update(self._context_handlers)
        state = {**vars(self), "_context_handlers": original._context_handlers}
        reconstruct = (core.HookContextChannel, object, None)
        return copyreg._reconstructor, reconstruct, state


def lab_channel(state, publishes_exception):
    # With `publishes_exception`, a scope whose body raises leaves
    # `arg.exception` set, as in RoboOrchardLab 0.5 and later.
    cdef Registrations channel = LabChannel.__new__(LabChannel)
    channel._is_lab = True
    channel._publishes_exception = publishes_exception
    channel.__setstate__(state)
    return channel


cdef inline Scope _open(Registrations channel, object arg):
    cdef Scope scope = Scope.__new__(Scope)
    scope.channel = channel
    scope.arg = arg
    scope.state = NEW
    return scope


# `channel.begin` need not be called, which saves 20 of 105 ns, unless it has
# been overridden. CPython gives a class a new version whenever it or a base
# changes (0 when it has none left), so an equal version stands for a lookup of
# `begin`. It is the lookup below that makes CPython assign one.
cdef inline bint _has_own_begin(Registrations channel) except -1:
    cdef PyTypeObject* cls = Py_TYPE(channel)
    if cls.tp_version_tag == channel._checked_version != 0:
        return False
    if (
        type(channel).begin is not Registrations.begin
        or "begin" in PyObject_GenericGetDict(channel, NULL)
    ):
        return True
    channel._checked_version = cls.tp_version_tag
    return False


cdef object _MISSING = object()


def begin(self, channel, arg=_MISSING):
    """Implements `PipelineHooks.begin`, which sets this docstring."""
    cdef PyObject* found = NULL
    if arg is _MISSING:  # Cython's own error would count `self`.
        raise TypeError("begin() missing 1 required argument: 'arg'")
    hooks = getattr(self, "hooks", None)
    if type(hooks) is dict:
        found = _find(<dict>hooks, channel)
        if found == NULL:
            PyErr_Clear()  # find_channel raises it again, and explains it.
    registered = <object>found if found else find_channel(self, channel)
    if (
        type(registered) is HookContextChannel
        or type(registered) is LabChannel
    ) and not _has_own_begin(<Registrations>registered):
        return _open(<Registrations>registered, arg)
    return registered.begin(arg)


def find_channel(hooks, name):
    """Returns a channel of PipelineHooks, or raises an error that explains."""
    try:
        channels = hooks.hooks
    except AttributeError as error:
        raise AttributeError(
            f"{type(hooks).__name__} has no channels: its __init__ has to "
            "call super().__init__()"
        ) from error
    try:
        return channels[name]
    except KeyError:
        raise KeyError(
            f"there is no channel {name!r}; the channels are "
            + ", ".join(map(repr, channels))
        ) from None
    except TypeError as error:
        raise TypeError(
            f"{error}: the name of the channel comes first, as in "
            "begin('on_step', args)"
        ) from error


# A scope is its own `__enter__` and `__exit__`, and a call of it does what the
# number of arguments says: without two bound methods, `with` takes 290 of
# 2,200 instructions less.
cdef class _ScopeItself:
    cdef object function  # What the class shows, for contextlib.ExitStack.

    def __init__(self, function):
        self.function = function

    def __get__(self, scope, owner):
        return self.function if scope is None else scope


cdef enum:
    BLANK  # Not made by `begin`; it has no channel to enter.
    NEW
    ENTERING
    ENTERED
    LEFT


@cython.final
@cython.freelist(16)
@cython.auto_pickle(False)
cdef class Scope:
    """The context manager, or decorator, that `begin` returns."""

    cdef Registrations channel
    cdef object arg
    cdef int state
    cdef tuple hooks  # Of the current phase.
    cdef Py_ssize_t position  # How many of them have run.
    # The number of the recording when the scope was entered (20 instructions
    # less than a reference to the recorder), and when it was entered and its
    # body began (-1: not yet).
    cdef long long recording
    cdef long long entered
    cdef long long began

    __enter__ = _ScopeItself(lambda scope: scope())
    __exit__ = _ScopeItself(lambda scope, *error: scope(*error))

    def __call__(self, *args):
        if len(args) == 0:
            return self._enter()
        if len(args) == 3:
            return self._exit(args[0], args[1])
        return decorated(*args, channel=self.channel, arg=self.arg)

    cdef object _enter(self):
        if self.state != NEW:
            raise RuntimeError(
                "a scope can be entered once: call begin again for each step"
            )
        self.state = ENTERING
        if self.channel._recording:
            self.recording = self.channel._recording
            self.entered = self.channel._recorder.now()
            self.began = -1
        if self._begin_phase():
            try:
                _run(self, "before", "_before")
            except BaseException as error:
                self.state = ENTERED
                self._exit(type(error), error)
                raise
        self.state = ENTERED
        if self._is_timed():
            self.began = self.channel._recorder.now()
        return self.arg

    cdef object _exit(self, object error_type, object error):
        cdef Recorder recorder
        cdef long long ended
        if error is None and error_type is not None:
            error = error_type()  # As contextlib does.
        if self.state == LEFT:
            return
        if self.state != ENTERED:
            raise RuntimeError("a scope has to be entered before it is left")
        self.state = LEFT
        if not self._is_timed():
            self._leave(error)
            return
        recorder = self.channel._recorder
        ended = recorder.now()
        try:
            self._leave(error)
        finally:
            recorder.leave(self.entered, self.began, ended)

    cdef inline bint _is_timed(self) noexcept:
        return self.recording and self.recording == self.channel._recording

    cdef inline bint _begin_phase(self) except -1:
        if self.channel._hooks is None:
            self.channel._take_snapshot()
        if not self.channel._hooks:
            return False
        self.hooks = self.channel._hooks
        self.position = 0
        return True

    cdef inline int _leave(self, object error) except -1:
        if self.channel._is_lab:
            if error is not None and self.channel._publishes_exception:
                _set_exception(self.arg, error)
            if self._begin_phase():
                _run(self, "after", "_after")
        elif self._begin_phase():
            previous = _set_exception(self.arg, error)
            try:
                _run(self, "after", "_after")
            finally:
                # If the argument kept it, traceback, frame and batch would be
                # a cycle, and a retry after running out of memory could not
                # have their memory.
                _set_exception(self.arg, previous)


cdef int _run(Scope scope, str phase, str slot) except -1:
    try:
        # A single loop would cost a hook that is not timed 1.1% more.
        if scope._is_timed():
            _call_timed(scope, phase, slot)
        else:
            _call_each(scope, phase, slot)
    except BaseException as error:
        _explain(scope, phase, error)
        raise


cdef int _call_each(Scope scope, str phase, str slot) except -1:
    cdef bint original = _class_is_original()
    arg = scope.arg
    for hook in scope.hooks:
        _call(hook, arg, phase, slot, original)
        scope.position += 1


cdef int _call_timed(Scope scope, str phase, str slot) except -1:
    cdef Recorder recorder = scope.channel._recorder
    cdef tuple rows = recorder.rows(scope.hooks, phase)
    cdef bint original = _class_is_original()
    cdef Stats row
    cdef long long began
    for hook in scope.hooks:
        row = <Stats>rows[scope.position]
        if row.open is not None:
            row.open()
        began = recorder.now()
        try:
            _call(hook, scope.arg, phase, slot, original)
        finally:
            row.add(recorder.now() - began)
            if row.close is not None:
                row.close()
        scope.position += 1


# The class of nearly all hooks: `before` calls its `_before`, if not None.
cdef type FromCallable = type(core.HookContext.from_callable())


def _original_method(phase):
    # None if it is patched, or does more than `_call` in another release.
    method = vars(FromCallable)[phase]
    names = getattr(getattr(method, "__code__", None), "co_names", None)
    return method if names == (f"_{phase}",) else None


cdef object _original_before = _original_method("before")
cdef object _original_after = _original_method("after")
# The version of FromCallable at which it had these methods; 0 if not known.
cdef unsigned int _original_version = 0
cdef Py_ssize_t _unpatched_size = len(vars(core.HookContext.from_callable()))


cdef inline int _call(
    object hook, object arg, str phase, str slot, bint class_is_original
) except -1:
    # Calls what a FromCallable keeps without the method around it, unless that
    # is patched. A patched hook has an attribute more; comparing sizes, not
    # looking the method up, saves 95 of 740 instructions.
    cdef dict attributes
    cdef PyObject* callback
    if type(hook) is FromCallable and class_is_original:
        attributes = PyObject_GenericGetDict(hook, NULL)
        if len(attributes) == _unpatched_size or phase not in attributes:
            callback = PyDict_GetItemWithError(attributes, slot)
            if callback != NULL:
                if callback != <PyObject*>None:
                    # The call may replace it, so a reference is held.
                    function = <object>callback
                    PyObject_CallOneArg(function, arg)
                return 0
    PyObject_CallMethodOneArg(hook, phase, arg)


# By its version, as in `_has_own_begin`.
cdef inline bint _class_is_original() except -1:
    global _original_version
    cdef PyTypeObject* cls = <PyTypeObject*>FromCallable
    if cls.tp_version_tag == _original_version != 0:
        return True
    if (
        FromCallable.before is not _original_before
        or FromCallable.after is not _original_after
    ):
        return False
    _original_version = cls.tp_version_tag
    return True


def set_recorder(Registrations channel not None, Recorder recorder):
    # A scope is timed if it is entered and left during one recording.
    global _recordings
    _recordings += 1
    # Releasing the old recorder may let other threads run scopes.
    channel._recording = 0
    channel._recorder = recorder
    if recorder is not None:
        channel._recording = _recordings


cdef object _LEFT_ALONE = object()


cdef inline object _set_exception(object arg, object error):
    # Returns the value to restore afterwards.
    if type(arg) is not PipelineHookArgs:
        return _set_foreign_exception(arg, error)
    previous = (<PipelineHookArgs>arg).exception
    if previous is not error:
        (<PipelineHookArgs>arg).exception = error
    return previous


cdef object _set_foreign_exception(object arg, object error):
    if error is _LEFT_ALONE:
        return error
    try:
        previous = getattr(arg, "exception", _LEFT_ALONE)
        if previous is None or isinstance(previous, BaseException):
            if previous is not error:
                arg.exception = error
            return previous
    except Exception:  # The attribute cannot be read or set.
        pass
    return _LEFT_ALONE


@cython.boundscheck(True)
cdef int _explain(Scope scope, str phase, object error) except -1:
    try:
        hook = scope.hooks[scope.position]
        add_note(error, scope.channel.name, scope.position, hook, phase)
    except Exception:  # An error in here must not replace the hook's.
        pass


cdef int _check_hook(object hook) except -1:
    cdef dict attributes
    if type(hook) is FromCallable and _class_is_original():
        attributes = PyObject_GenericGetDict(hook, NULL)
        if len(attributes) == _unpatched_size:
            before = attributes.get("_before")
            after = attributes.get("_after")
            if (
                (before is not None or after is not None)
                and (before is None or _is_plain(before))
                and (after is None or _is_plain(after))
            ):
                return 0
    check_hook(hook)


cdef object _Function = FunctionType
cdef object _Method = MethodType


cdef inline bint _is_plain(object callback) except -1:
    cdef PyObject* function = <PyObject*>callback
    if type(callback) is _Method:
        function = PyMethod_GET_FUNCTION(callback)
    return type(<object>function) is _Function and not (
        (<PyCodeObject*>PyFunction_GET_CODE(<object>function)).co_flags
        & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR)
    )


class RemoveableHandle(core.RemoveableHandle[CallableType]):
    """Unregisters what was registered.

    Calling the handle unregisters the hook, also if it was registered again,
    and does nothing if it is not registered. `remove()`, and leaving the
    handle as a context manager, also disable the handle.

    Args:
        hook (Callable): The function that unregisters.
    """

    def remove(self):
        """Unregisters the hook; calling the handle then raises RuntimeError.

        Calling `remove` again does nothing.
        """
        if self.hook is not None:
            self.hook()
            self.hook = None
