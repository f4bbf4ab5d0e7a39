"""Compiled hook dispatch: the channel, the scope of a `begin`, the handle.

The path of a call is `begin` -> `Scope._enter` -> the body of the `with` ->
`Scope._exit`; `_run` is the loop over the callbacks in both.
"""

import copyreg
import gc
from copy import deepcopy
from functools import partial, wraps
from typing import TypeVar

from robo_orchard_core.utils import hook as core

cimport cython
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject, PyTypeObject

from robo_orchard_fasthooks._args cimport PipelineHookArgs
from robo_orchard_fasthooks._record cimport Recorder, Stats

cdef extern from "Python.h":
    dict PyObject_GenericGetDict(object instance, void* context)
    object PyObject_CallMethodOneArg(object self, object name, object arg)
    object PyObject_CallOneArg(object callable, object arg)
    int PyObject_GenericSetAttr(
        object self, object name, PyObject* value
    ) except -1

cdef extern from *:
    """
    #define TYPE_NAMESPACE(type) (((PyTypeObject*)(type))->tp_dict)
    """
    PyObject* TYPE_NAMESPACE(object type)  # A borrowed reference.

T = TypeVar("T")
CallableType = TypeVar("CallableType")

# Nearly every hook is one of these: two callables, each behind a method that
# calls it if it is not None.
cdef type FromCallable = type(core.HookContext.from_callable())
cdef Py_ssize_t _size_as_made = len(vars(core.HookContext.from_callable()))


def _method_as_released(phase):
    # None for one that was patched before this module was imported, or that
    # another release made do more than `_run` does in its place.
    method = vars(FromCallable)[phase]
    code = getattr(method, "__code__", None)
    names = getattr(code, "co_names", None)
    return method if names == (f"_{phase}",) else None


cdef object _original_before = _method_as_released("before")
cdef object _original_after = _method_as_released("after")


cdef class Registrations:
    """The hooks of a channel, in registration order."""

    cdef dict _members
    # Whether this object was ever given a `begin` of its own.
    cdef bint _patched
    # Whether it stands in for a channel of robo_orchard_core, and whether the
    # scopes there tell the arguments of an exception.
    cdef bint _in_place
    cdef bint _publishes_exception
    # What times the hooks, if anything does.
    cdef Recorder _recorder
    # Replaced, never changed, so that a phase runs over the hooks as they
    # stood when it began, at no cost.
    cdef tuple _hooks

    def __cinit__(self):
        self._members = {}
        self._hooks = ()

    @property
    def _context_handlers(self):
        return self._hooks

    def __setattr__(self, name, value):
        PyObject_GenericSetAttr(self, name, <PyObject*>value)
        if name == "begin":
            self._patched = True

    def __len__(self):
        return len(self._hooks)

    def __getitem__(self, item):
        return list(self._hooks)[item]

    @cython.binding(False)  # As a C method, as the interpreter calls best.
    def begin(self, arg):
        """begin($self, /, arg)
--

Opens a scope, which calls the hooks around the body of a `with`.

Args:
    arg: What every hook is called with, and what `with` yields.

Returns:
    Scope: A context manager to enter once, or a decorator. Nothing runs
        before it is entered.
"""
        return _open(self, arg)

    def register(self, hook):
        """Adds a hook after those that are there; one that is stays in place.

        Args:
            hook (HookContext): The hook, or any hashable object that has
                callable `before` and `after`.

        Returns:
            RemoveableHandle: Call it, or its `remove`, to take the hook out.

        Raises:
            TypeError: The object is not a hook, or is not hashable.
        """
        return self._add((hook,))

    def register_hook_channel(self, channel):
        """Adds the hooks of another channel, in their order.

        Args:
            channel (HookContextChannel): The other channel.

        Returns:
            RemoveableHandle: Call it, or its `remove`, to take them all out.

        Raises:
            ValueError: The channels' names differ.
            TypeError: One of the objects is not a hook.
        """
        if channel.name != self.name:
            raise ValueError(
                f"Cannot register hook channel {channel.name} to {self.name}"
            )
        return self._add(tuple(channel._context_handlers))

    def unregister_all(self):
        """Takes out all hooks."""
        self._members.clear()
        self._hooks = ()

    cdef object _add(self, tuple hooks):
        cdef dict members = self._members
        for hook in hooks:
            check_hook(hook)
        if len(hooks) > 1:
            # Nothing is added if one cannot be hashed or compared.
            members = members.copy()
        for hook in hooks:
            members[hook] = None
        self._members, self._hooks = members, tuple(members)
        return RemoveableHandle(partial(self._discard, hooks))

    def _discard(self, hooks):
        for hook in hooks:
            self._members.pop(hook, None)
        self._hooks = tuple(self._members)

    def __getstate__(self):
        return {**self.__dict__, "_context_handlers": self._hooks}

    def __setstate__(self, state):
        for name, value in state.items():
            if name == "_context_handlers":
                self._members = dict.fromkeys(value)
                self._hooks = tuple(self._members)
            else:
                setattr(self, name, value)

    def __reduce__(self):
        return copyreg.__newobj__, (type(self),), self.__getstate__()


class HookContextChannel(Registrations, core.HookContextChannel[T]):
    """An ordered set of hooks that run around a piece of the loop.

    Args:
        name (str): The name of the channel.
    """

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        from robo_orchard_fasthooks._describe import channel_repr

        return channel_repr(self, type(self))


class LabChannel(HookContextChannel[T]):
    """Stands in RoboOrchardLab's own hooks for robo_orchard_core's channel.

    Its pickles load as robo_orchard_core's, without this package.
    """

    def __repr__(self):
        from robo_orchard_fasthooks._describe import channel_repr

        return channel_repr(self, core.HookContextChannel)

    def __copy__(self):
        return in_place(self.__getstate__(), (<Registrations>self)._publishes_exception)

    def __deepcopy__(self, memo):
        memo[id(self)] = copy = in_place({}, (<Registrations>self)._publishes_exception)
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        return copy

    def __reduce__(self):
        original = core.HookContextChannel(self.name)
        original._context_handlers.update(self._context_handlers)
        state = {**vars(self), "_context_handlers": original._context_handlers}
        reconstruct = (core.HookContextChannel, object, None)
        return copyreg._reconstructor, reconstruct, state


def in_place(state, publishes_exception):
    """Makes a LabChannel.

    Args:
        state (dict): The state of the channel that it stands in for.
        publishes_exception (bool): Whether a failing body is to leave its exception in the
            arguments, as from RoboOrchardLab 0.5 on.

    Returns:
        LabChannel: The channel.
    """
    cdef Registrations channel = LabChannel.__new__(LabChannel)
    channel._in_place = True
    channel._publishes_exception = publishes_exception
    channel.__setstate__(state)
    return channel


cdef inline Scope _open(Registrations channel, object arg):
    cdef Scope scope = Scope.__new__(Scope)
    scope.channel = channel
    scope.arg = arg
    scope.state = NEW
    return scope


def begin(self, channel, arg):
    """Opens a scope, which calls a channel's hooks around a `with` body.

    The `before` callbacks run in the order of registration, then the body,
    then the `after` callbacks, in the order of registration too and also when
    a `before` or the body raised.

    Args:
        channel (PipelineHookChanelType): The channel.
        arg (PipelineHookArgs): What every hook is called with, and what
            `with` yields.

    Returns:
        AbstractContextManager: To be entered once, or used as a decorator.
            Nothing runs before it is entered.

    Raises:
        KeyError: There is no such channel.
    """
    cdef PyObject* found = NULL
    hooks = getattr(self, "hooks", None)
    if isinstance(hooks, dict):
        found = PyDict_GetItemWithError(hooks, channel)
    registered = <object>found if found != NULL else find_channel(self, channel)
    # Straight to the scope, 20 of 105 ns less, unless the channel may have
    # another `begin`: of its class, patched into it, or patched into ours.
    if (
        (
            type(registered) is HookContextChannel
            or type(registered) is LabChannel
        )
        and not (<Registrations>registered)._patched
        and PyDict_GetItemWithError(
            <object>TYPE_NAMESPACE(HookContextChannel), "begin"
        ) == NULL
    ):
        return _open(registered, arg)
    return registered.begin(arg)


def find_channel(hooks, name):
    """The channel of that name, or an error that says what is wrong."""
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


cdef class _ScopeItself:
    """Stands for `__enter__` and `__exit__`, and hands back the scope itself.

    A `with` statement binds both methods before it calls them. Binding
    nothing saves two allocations, 20 ns, in each scope.
    """

    cdef object function

    def __init__(self, function):
        self.function = function

    def __get__(self, scope, owner):
        return self.function if scope is None else scope


def _scope_enter(scope):
    return scope()


def _scope_exit(scope, exc_type, exc_value, traceback):
    return scope(exc_type, exc_value, traceback)


cdef enum:
    BLANK  # Not made by `begin`: there is nothing to enter.
    NEW
    ENTERING
    ENTERED
    LEFT


@cython.final
@cython.freelist(16)
@cython.auto_pickle(False)
cdef class Scope:
    """What `begin` returns: a context manager, or a decorator."""

    cdef Registrations channel
    cdef object arg
    cdef int state
    # Of the phase that runs: its hooks, and how many of them are through.
    cdef tuple hooks
    cdef Py_ssize_t position
    # The recorder of its channel when it was entered, borrowed and only to be
    # compared: a reference would take 20 instructions of a scope without one.
    # When it was entered, and when its body began, -1 if that did not.
    cdef PyObject* recorder
    cdef long long entered
    cdef long long began

    __enter__ = _ScopeItself(_scope_enter)
    __exit__ = _ScopeItself(_scope_exit)

    def __call__(self, *args):
        if len(args) == 0:
            return self._enter()
        if len(args) == 3:
            return self._exit(args[1])
        return self._decorate(*args)

    cdef object _enter(self):
        if self.state != NEW:
            raise RuntimeError("a scope can be entered once")
        self.state = ENTERING
        if self.channel._recorder is not None:
            self.recorder = <PyObject*>self.channel._recorder
            self.entered = self.channel._recorder.now()
            self.began = -1
        if self.channel._hooks:
            try:
                if self.recorder == NULL or self.channel._recorder is None:
                    _run(self, "before", "_before", _original_before, None)
                else:
                    _run_recorded(
                        self, "before", "_before", _original_before, None
                    )
            except BaseException as error:
                _explain(self, "before", error)
                self.state = ENTERED
                self._exit(error)
                raise
        self.state = ENTERED
        if self.recorder != NULL and self.channel._recorder is not None:
            self.began = self.channel._recorder.now()
        return self.arg

    cdef object _exit(self, object error):
        if self.state == LEFT:
            return
        if self.state != ENTERED:
            raise RuntimeError("a scope has to be entered before it is left")
        self.state = LEFT
        if self.recorder == NULL:
            self._leave(error)
        elif self.recorder == <PyObject*>self.channel._recorder:
            self._leave_recorded(self.channel._recorder, error)
        else:  # That one was stopped.
            self.recorder = NULL
            self._leave(error)

    cdef int _leave_recorded(self, Recorder recorder, object error) except -1:
        cdef long long ended = recorder.now()
        try:
            self._leave(error)
        finally:
            recorder.leave(self.entered, self.began, ended)
        return 0

    cdef inline int _leave(self, object error) except -1:
        if self.channel._in_place:
            if error is not None and self.channel._publishes_exception:
                _set_exception(self.arg, error)
            if self.channel._hooks:
                self._run_afters(None)
        elif self.channel._hooks:
            _set_exception(self.arg, error)
            try:
                self._run_afters(error)
            finally:
                # Kept, it would tie exception, traceback, frame and batch into
                # a cycle: memory that an out-of-memory retry needs.
                _set_exception(self.arg, None)
        return 0

    cdef int _run_afters(self, object error) except -1:
        try:
            if self.recorder == NULL or self.channel._recorder is None:
                _run(self, "after", "_after", _original_after, error)
            else:
                _run_recorded(self, "after", "_after", _original_after, error)
        except BaseException as failure:
            _explain(self, "after", failure)
            raise
        return 0

    def _decorate(self, function):
        channel, arg = self.channel, self.arg

        @wraps(function)
        def inner(*args, **kwargs):
            with channel.begin(arg):
                return function(*args, **kwargs)

        return inner


cdef int _run(
    Scope scope, str phase, str slot, object original, object error
) except -1:
    """Calls the callbacks of one phase, `before` or `after`, in order."""
    cdef int class_is_unpatched = -1  # Not looked at.
    scope.hooks = scope.channel._hooks
    scope.position = 0
    for hook in scope.hooks:
        if error is not None:
            # Again: a callback may have run a scope on the same argument.
            _set_exception(scope.arg, error)
        _call(hook, scope.arg, phase, slot, original, &class_is_unpatched)
        scope.position += 1
    return 0


cdef int _run_recorded(
    Scope scope, str phase, str slot, object original, object error
) except -1:
    """Does what `_run` does, and takes the time of each callback."""
    cdef int class_is_unpatched = -1
    cdef Recorder recorder = scope.channel._recorder
    cdef tuple rows
    cdef Stats row
    cdef long long began
    scope.hooks = scope.channel._hooks
    scope.position = 0
    # It runs Python code, which may change the hooks of the channel.
    rows = recorder.rows(scope.hooks, phase)
    for hook in scope.hooks:
        if error is not None:
            _set_exception(scope.arg, error)
        row = <Stats>rows[scope.position]
        if row.open is not None:
            row.open()
        began = recorder.now()
        try:
            _call(hook, scope.arg, phase, slot, original, &class_is_unpatched)
        finally:
            row.add(recorder.now() - began)
            if row.close is not None:
                row.close()
        scope.position += 1
    return 0


cdef inline int _call(
    object hook,
    object arg,
    str phase,
    str slot,
    object original,
    int* class_is_unpatched,
) except -1:
    # The callbacks of hooks that from_callable makes are called without the
    # methods around them, unless these are patched: in the class, looked at
    # once a phase, or in the hook. There it is one attribute more than the
    # hook was made with (if none was deleted); asking for it by name each time
    # takes 6 of 30 ns.
    cdef dict namespace
    cdef PyObject* callback
    if type(hook) is FromCallable:
        if class_is_unpatched[0] < 0:
            class_is_unpatched[0] = PyDict_GetItemWithError(
                <object>TYPE_NAMESPACE(FromCallable), phase
            ) == <PyObject*>original
        namespace = PyObject_GenericGetDict(hook, NULL)
        if class_is_unpatched[0] and (
            len(namespace) == _size_as_made or phase not in namespace
        ):
            callback = PyDict_GetItemWithError(namespace, slot)
            if callback != NULL:
                if callback != <PyObject*>None:
                    function = <object>callback  # It may be replaced.
                    PyObject_CallOneArg(function, arg)
                return 0
    PyObject_CallMethodOneArg(hook, phase, arg)
    return 0


def recorder_of(Registrations channel):
    """The recorder of a channel, or None."""
    return channel._recorder


def set_recorder(Registrations channel, Recorder recorder):
    """Gives a channel a recorder, or None to take it away."""
    channel._recorder = recorder


def running_phases(arg):
    """Finds the phases that are running on an argument.

    No record is kept of them, so that this costs dispatch nothing: it looks
    through all objects of the garbage collector, 170,000 of them in 50 ms.

    Returns:
        list[tuple]: The channel of each, its hooks, and the position of the
            hook that is running.
    """
    cdef Scope scope
    found = []
    for each in gc.get_objects():
        if type(each) is Scope:
            scope = <Scope>each
            if (
                scope.arg is arg
                and scope.hooks is not None
                and scope.position < len(scope.hooks)
            ):
                found.append((scope.channel, scope.hooks, scope.position))
    return found


cdef inline int _set_exception(object arg, object error) except -1:
    if type(arg) is not PipelineHookArgs:
        return _set_foreign_exception(arg, error)
    if (<PipelineHookArgs>arg).exception is not error:
        (<PipelineHookArgs>arg).exception = error
    return 0


cdef int _set_foreign_exception(object arg, object error) except -1:
    try:
        found = getattr(arg, "exception", error)
        if found is not error and (
            found is None or isinstance(found, BaseException)
        ):
            arg.exception = error
    except Exception:  # Not to be read or set there: left alone.
        pass
    return 0


@cython.boundscheck(True)
cdef int _explain(Scope scope, str phase, object error) except -1:
    try:
        from robo_orchard_fasthooks._describe import add_note

        hook = scope.hooks[scope.position]
        add_note(error, scope.channel.name, scope.position, hook, phase)
    except Exception:  # The error on its way out matters more than its note.
        pass
    return 0


def check_hook(hook):
    """Raises TypeError for what has no callable `before` and `after`."""
    for phase in ("before", "after"):
        if not callable(getattr(hook, phase, None)):
            from robo_orchard_fasthooks._describe import hook_repr

            raise TypeError(
                f"cannot register {hook_repr(hook)}: it has no callable "
                f"`{phase}`. A hook has `before` and `after`; make one of "
                "functions with HookContext.from_callable"
            )


class RemoveableHandle(core.RemoveableHandle[CallableType]):
    """Undoes a registration, when called or removed.

    Calling it takes the hook out, also when it has been registered anew, and
    does nothing when it is not there. `remove()`, or leaving `with handle:`,
    does so for the last time.

    Args:
        hook (Callable): What undoes the registration.
    """

    def remove(self):
        """Undoes the registration; a later call raises RuntimeError."""
        if self.hook is not None:
            self.hook()
            self.hook = None
