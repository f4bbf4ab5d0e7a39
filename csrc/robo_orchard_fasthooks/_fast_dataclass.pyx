"""Quick construction and copies of arguments that are a plain dataclass.

RoboOrchardLab's own arguments stay the class that they are. Python makes one
by way of a dictionary of keywords, a frame and an attribute after the other; a
copy of a dictionary of the defaults, updated, takes half of that, and copying
arguments by their dictionary a sixth (CPython 3.11).

An `__init__`, `__new__` or `__setattr__` that is patched into the class later
is run. A property that is put in the place of a field later, or a change of
`__init__.__defaults__`, is not seen.
"""

import dataclasses
from functools import update_wrapper
from inspect import signature

from cpython.dict cimport (
    PyDict_Contains,
    PyDict_Copy,
    PyDict_GetItemWithError,
    PyDict_SetItem,
)
from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef object (*vectorcallfunc)(
        object callable, PyObject** args, size_t nargsf, PyObject* keywords
    )
    ctypedef struct PyTypeObject:
        PyObject* tp_dict
        void* tp_new
        void* tp_setattro
        vectorcallfunc tp_vectorcall

    object PyType_GenericAlloc(PyTypeObject* type, Py_ssize_t items)
    Py_ssize_t PyTuple_GET_SIZE(PyObject* tuple)
    PyObject* PyTuple_GET_ITEM(PyObject* tuple, Py_ssize_t index)
    Py_ssize_t PyVectorcall_NARGS(size_t nargsf)
    dict PyObject_GenericGetDict(object instance, void* context)

cdef object _MISSING = object()
cdef object _NO_DEFAULT = dataclasses.MISSING
# The class that is constructed here, its `__init__`, what the dictionary of an
# instance holds before the arguments are put in, and the fields to be given.
cdef object _cls = None
cdef object _init = None
cdef dict _defaults = {}
cdef tuple _required = ()
cdef object _original_copy = None


def unsupported_reason(cls):
    """Says what there is to a class beside fields that its instances hold.

    Args:
        cls (type): The class.

    Returns:
        str | None: What keeps it from being constructed here, if anything.
    """
    if type(cls) is not type or "__dataclass_fields__" not in vars(cls):
        return "it has no fields of its own, or a metaclass"
    code = getattr(vars(cls).get("__init__"), "__code__", None)
    # As the decorator compiles one.
    if getattr(code, "co_filename", None) != "<string>":
        return "its __init__ is not that of a dataclass"
    if hasattr(cls, "__post_init__"):
        return "it has a __post_init__"
    for name in ("__new__", "__setattr__"):
        if getattr(cls, name) is not getattr(object, name):
            return f"it has a {name}"
    fields = dataclasses.fields(cls)
    if [field.name for field in fields] != list(signature(cls).parameters):
        return "its __init__ takes other things than its fields"
    for field in fields:
        if field.default_factory is not _NO_DEFAULT or hasattr(
            type(getattr(cls, field.name, None)), "__set__"
        ):
            return f"its {field.name} is not a plain field"
    return None


def enable(cls):
    """Makes calls of a plain dataclass quick. One class at a time can be.

    Its subclasses are called as before.

    Args:
        cls (type): The class.
    """
    global _cls, _init, _defaults, _required
    _cls, _init = cls, vars(cls)["__init__"]
    _defaults = {
        field.name: field.default for field in dataclasses.fields(cls)
    }
    _required = tuple(
        name
        for name, default in _defaults.items()
        if default is _NO_DEFAULT
    )
    (<PyTypeObject*>cls).tp_vectorcall = <vectorcallfunc>_construct


def disable(cls):
    """Undoes `enable`."""
    global _cls, _init
    (<PyTypeObject*>cls).tp_vectorcall = NULL
    _cls = _init = None


def copying(original):
    """Makes a quick `copy_with_updates` for the class constructed here.

    Args:
        original (Callable): That of the class. It goes on to be called for
            subclasses, and for instances with attributes that are no fields.

    Returns:
        Callable: The method.
    """
    global _original_copy
    _original_copy = original
    return update_wrapper(copy_with_updates, original)


def copy_with_updates(
    self,
    *,
    batch=_MISSING,
    model_outputs=_MISSING,
    reduce_loss=_MISSING,
    **kwargs,
):
    # The three that a batch processor sets on every step are named: as keys of
    # a dictionary they would take 90 of 280 ns.
    cdef dict namespace
    if type(self) is _cls and _is_constructed_here(_cls):
        namespace = PyDict_Copy(PyObject_GenericGetDict(self, NULL))
        if len(namespace) == len(_defaults):
            copy = _instance(_cls, namespace)
            if batch is not _MISSING:
                _set(copy, namespace, "batch", batch)
            if model_outputs is not _MISSING:
                _set(copy, namespace, "model_outputs", model_outputs)
            if reduce_loss is not _MISSING:
                _set(copy, namespace, "reduce_loss", reduce_loss)
            for key, value in kwargs.items():
                _set(copy, namespace, key, value)
            return copy
    if batch is not _MISSING:
        kwargs["batch"] = batch
    if model_outputs is not _MISSING:
        kwargs["model_outputs"] = model_outputs
    if reduce_loss is not _MISSING:
        kwargs["reduce_loss"] = reduce_loss
    return _original_copy(self, **kwargs)


cdef inline int _set(
    object copy, dict namespace, object key, object value
) except -1:
    if PyDict_Contains(namespace, key):
        PyDict_SetItem(namespace, key, value)
    elif hasattr(copy, key):
        setattr(copy, key, value)
    else:
        raise AttributeError(f"{key} is not a valid attribute")
    return 0


cdef object _construct(
    object cls, PyObject** args, size_t nargsf, PyObject* keywords
):
    cdef Py_ssize_t index, count = 0
    cdef Py_ssize_t positional = PyVectorcall_NARGS(nargsf)
    cdef dict namespace
    if keywords != NULL:
        count = PyTuple_GET_SIZE(keywords)
    # All by keyword, as trainers do it.
    if positional == 0 and _is_constructed_here(cls):
        namespace = PyDict_Copy(_defaults)
        for index in range(count):
            PyDict_SetItem(
                namespace,
                <object>PyTuple_GET_ITEM(keywords, index),
                <object>args[index],
            )
        if len(namespace) == len(_defaults) and _is_complete(namespace):
            return _instance(cls, namespace)
    return type.__call__(
        cls,
        *[<object>args[index] for index in range(positional)],
        **{
            <object>PyTuple_GET_ITEM(keywords, index): <object>args[
                positional + index
            ]
            for index in range(count)
        },
    )


cdef inline bint _is_constructed_here(object cls) except -1:
    cdef PyTypeObject* type_ = <PyTypeObject*>cls
    return (
        cls is _cls
        and type_.tp_new == (<PyTypeObject*>object).tp_new
        and type_.tp_setattro == (<PyTypeObject*>object).tp_setattro
        and PyDict_GetItemWithError(<object>type_.tp_dict, "__init__")
        == <PyObject*>_init
    )


cdef inline bint _is_complete(dict namespace) except -1:
    for name in _required:
        if (
            PyDict_GetItemWithError(namespace, name)
            == <PyObject*>_NO_DEFAULT
        ):
            return False
    return True


cdef inline object _instance(object cls, dict namespace):
    instance = PyType_GenericAlloc(<PyTypeObject*>cls, 0)
    # Not by PyObject_GenericSetDict: CPython 3.13 goes on reading attributes
    # from where they were before.
    instance.__dict__ = namespace
    return instance
