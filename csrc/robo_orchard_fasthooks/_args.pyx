"""The arguments that hooks are called with: one C struct, a dataclass to all.

They matter as much as dispatch: a training step builds them twice and copies
them twice, which takes a Python dataclass as long as two scopes with hooks.
"""

import copyreg
import dataclasses
from reprlib import recursive_repr
from types import MappingProxyType

cimport cython
from cpython.object cimport PyObject, PyTypeObject

cdef extern from "Python.h":
    dict PyObject_GenericGetDict(object instance, void* context)
    void PyType_Modified(PyTypeObject* type)

cdef extern from *:
    """
    #define TYPE_NAMESPACE(type) ((type)->tp_dict)
    """
    PyObject* TYPE_NAMESPACE(PyTypeObject* type)  # A borrowed reference.

# What dataclasses.fields() and its kin see. The order is that of the 0.2 API
# documents; what later releases added follows.
cdef type _twin = dataclasses.make_dataclass(
    "PipelineHookArgs",
    [
        ("accelerator", "Accelerator"),
        ("epoch_id", "int", 0),
        ("step_id", "int", 0),
        ("global_step_id", "int", 0),
        ("max_epoch", "Optional[int]", None),
        ("max_step", "Optional[int]", None),
        ("start_epoch", "int", 0),
        ("start_step", "int", 0),
        ("dataloader", "Optional[Iterable]", None),
        ("optimizer", "Optional[AcceleratedOptimizer]", None),
        ("lr_scheduler", "Optional[AcceleratedScheduler]", None),
        ("batch", "Optional[Any]", None),
        ("model_outputs", "Optional[ModelOutput]", None),
        ("reduce_loss", "Optional[torch.Tensor]", None),
        ("model", "Optional[torch.nn.Module]", None),
        ("exception", "Optional[BaseException]", None),
    ],
)
cdef tuple _FIELDS = tuple(_twin.__dataclass_fields__)
cdef object _MISSING = object()


@cython.auto_pickle(False)
@cython.freelist(16)
cdef class PipelineHookArgs:
    """PipelineHookArgs(accelerator, epoch_id=0, step_id=0, \
global_step_id=0, max_epoch=None, max_step=None, start_epoch=0, \
start_step=0, dataloader=None, optimizer=None, lr_scheduler=None, \
batch=None, model_outputs=None, reduce_loss=None, model=None, \
exception=None)
--

The state of the pipeline that a hook is called with.

Behaves as the dataclass it replaces: `dataclasses.fields`, `asdict` and
`replace`, `repr`, `==`, pickling, `@dataclass` subclasses and extra attributes
all work. `vars()` is a read-only view: a write to it raises.

Attributes:
    accelerator (Accelerator): The accelerator of the run.
    epoch_id (int): Epochs completed, from 0.
    step_id (int): Steps completed in this epoch, from 0.
    global_step_id (int): Steps completed in all, from 0.
    max_epoch (int | None): Epochs to train for, if limited.
    max_step (int | None): Steps to train for, if limited.
    start_epoch (int): Epoch that the run started or resumed at.
    start_step (int): Step that the run started or resumed at.
    dataloader (Iterable | None): What the batches come from.
    optimizer (torch.optim.Optimizer | None): The prepared optimizer.
    lr_scheduler (AcceleratedScheduler | None): The prepared scheduler.
    batch (Any): The current batch.
    model_outputs (Any): What the model returned for it.
    reduce_loss (torch.Tensor | None): The loss, averaged over processes.
    model (torch.nn.Module | None): The prepared model.
    exception (BaseException | None): While the `after` hooks of a scope run:
        what the scope raised, None if it did not.
"""

    __dataclass_fields__ = _twin.__dataclass_fields__
    __dataclass_params__ = _twin.__dataclass_params__
    __annotations__ = _twin.__annotations__
    __match_args__ = _FIELDS

    def __init__(
        self,
        accelerator=_MISSING,
        epoch_id=0,
        step_id=0,
        global_step_id=0,
        max_epoch=None,
        max_step=None,
        start_epoch=0,
        start_step=0,
        dataloader=None,
        optimizer=None,
        lr_scheduler=None,
        batch=None,
        model_outputs=None,
        reduce_loss=None,
        model=None,
        exception=None,
    ):
        if accelerator is _MISSING:
            raise TypeError(
                "PipelineHookArgs.__init__() missing 1 required positional "
                "argument: 'accelerator'"
            )
        # A new object's fields are None. Not writing None again, here and in
        # `_copy`, saves 25 of 140 ns on CPython 3.11, where each write of it
        # waits for the last one: its reference count is one word of memory.
        self.accelerator = accelerator
        self.epoch_id = epoch_id
        self.step_id = step_id
        self.global_step_id = global_step_id
        if self.max_epoch is not max_epoch:
            self.max_epoch = max_epoch
        if self.max_step is not max_step:
            self.max_step = max_step
        self.start_epoch = start_epoch
        self.start_step = start_step
        if self.dataloader is not dataloader:
            self.dataloader = dataloader
        if self.optimizer is not optimizer:
            self.optimizer = optimizer
        if self.lr_scheduler is not lr_scheduler:
            self.lr_scheduler = lr_scheduler
        if self.batch is not batch:
            self.batch = batch
        if self.model_outputs is not model_outputs:
            self.model_outputs = model_outputs
        if self.reduce_loss is not reduce_loss:
            self.reduce_loss = reduce_loss
        if self.model is not model:
            self.model = model
        if self.exception is not exception:
            self.exception = exception

    @cython.binding(False)
    def copy_with_updates(
        self,
        *,
        batch=_MISSING,
        model_outputs=_MISSING,
        reduce_loss=_MISSING,
        **kwargs,
    ):
        """copy_with_updates($self, /, **kwargs)
--

Copies these arguments and sets some attributes of the copy.

Args:
    **kwargs: The attributes to set, by name.

Returns:
    PipelineHookArgs: The copy, of the same class.

Raises:
    AttributeError: A key is not an attribute.
"""
        # The three that a batch processor sets on every step are named: as
        # keys of a dictionary they would take 50 of 180 ns.
        if type(self) is PipelineHookArgs:
            copy = _copy(self)
        else:
            # The constructor of a subclass may do more than set fields.
            copy = type(self)(**vars(self))
        if batch is not _MISSING:
            copy.batch = batch
        if model_outputs is not _MISSING:
            copy.model_outputs = model_outputs
        if reduce_loss is not _MISSING:
            copy.reduce_loss = reduce_loss
        for key, value in kwargs.items():
            if not hasattr(copy, key):
                raise AttributeError(f"{key} is not a valid attribute")
            setattr(copy, key, value)
        return copy

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return _values(self) == _values(other)

    def __ne__(self, other):
        # Asks the `__eq__` that a @dataclass subclass has of its own.
        equal = type(self).__eq__(self, other)
        return equal if equal is NotImplemented else not equal

    def __repr__(self):
        return _repr(self)

    def __replace__(self, **changes):
        return dataclasses.replace(self, **changes)

    def __reduce__(self):
        return copyreg.__newobj__, (type(self),), self.__getstate__()

    def __getstate__(self):
        state = dict(vars(self))
        for name in copyreg._slotnames(type(self)):
            if hasattr(self, name):
                state[name] = getattr(self, name)
        return state

    def __setstate__(self, state):
        if isinstance(state, tuple):  # As `object.__getstate__` makes one.
            state = {**(state[0] or {}), **state[1]}
        for name, value in state.items():
            setattr(self, name, value)


cdef PipelineHookArgs _copy(PipelineHookArgs self):
    cdef PipelineHookArgs copy = PipelineHookArgs.__new__(PipelineHookArgs)
    cdef dict extra = PyObject_GenericGetDict(self, NULL)
    if extra:
        PyObject_GenericGetDict(copy, NULL).update(extra)
    copy.accelerator = self.accelerator
    copy.epoch_id = self.epoch_id
    copy.step_id = self.step_id
    copy.global_step_id = self.global_step_id
    if self.max_epoch is not None:
        copy.max_epoch = self.max_epoch
    if self.max_step is not None:
        copy.max_step = self.max_step
    copy.start_epoch = self.start_epoch
    copy.start_step = self.start_step
    if self.dataloader is not None:
        copy.dataloader = self.dataloader
    if self.optimizer is not None:
        copy.optimizer = self.optimizer
    if self.lr_scheduler is not None:
        copy.lr_scheduler = self.lr_scheduler
    if self.batch is not None:
        copy.batch = self.batch
    if self.model_outputs is not None:
        copy.model_outputs = self.model_outputs
    if self.reduce_loss is not None:
        copy.reduce_loss = self.reduce_loss
    if self.model is not None:
        copy.model = self.model
    if self.exception is not None:
        copy.exception = self.exception
    return copy


def _values(self):
    return tuple([getattr(self, name) for name in _FIELDS])


def _show(self):
    shown = zip(_FIELDS, _values(self))
    content = ", ".join([f"{name}={value!r}" for name, value in shown])
    return f"{type(self).__qualname__}({content})"


cdef object _repr = recursive_repr()(_show)


def _view(self):
    """The fields and extra attributes by name, as vars() shows them."""
    state = dict(zip(_FIELDS, _values(self)))
    state.update(PyObject_GenericGetDict(self, NULL))
    return MappingProxyType(state)


# The slot that holds extra attributes brings its own `__dict__`, which would
# show those alone. Put in place as Cython puts a class attribute in place: its
# syntax has no way to say this one.
(<object>TYPE_NAMESPACE(<PyTypeObject*>PipelineHookArgs))[
    "__dict__"
] = property(_view)
PyType_Modified(<PyTypeObject*>PipelineHookArgs)
