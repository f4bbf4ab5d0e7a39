"""Fast construction and copies of arguments that are a plain dataclass.

The class keeps its `__init__`, but a call does not run it: `tp_vectorcall`
copies a dictionary of the defaults and sets the arguments that differ (40% of
the instructions). A copy of an instance is a copy of its dictionary (15%).
What later changes the class, or the code or defaults of its `__init__`, is
noticed, and Python then does as usual; only a change inside the dictionary
`__kwdefaults__` is not.
"""

import dataclasses
import dis
import inspect
from functools import update_wrapper
from types import FunctionType

cimport cython
from cpython.dict cimport PyDict_Copy, PyDict_Next, PyDict_SetItem
from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef object (*vectorcallfunc)(object, PyObject**, size_t, PyObject*)
    ctypedef struct PyTypeObject:
        unsigned int tp_version_tag
        vectorcallfunc tp_vectorcall

    int PY_VERSION_HEX
    PyObject* PyFunction_GET_CODE(object function)
    PyObject* PyFunction_GET_DEFAULTS(object function)
    PyObject* PyFunction_GET_KW_DEFAULTS(object function)
    object PyType_GenericAlloc(PyTypeObject* type, Py_ssize_t items)
    Py_ssize_t PyTuple_GET_SIZE(PyObject* tuple)
    PyObject* PyTuple_GET_ITEM(PyObject* tuple, Py_ssize_t index)
    Py_ssize_t PyVectorcall_NARGS(size_t nargsf)
    dict PyObject_GenericGetDict(object instance, void* context)
    int PyObject_GenericSetDict(object, object, void*) except -1

cdef object _MISSING = object()
# Instructions that only move arguments to attributes: code that consists of
# these alone always does what one trial shows.
cdef frozenset _MOVES = frozenset(
    "CACHE DELETE_FAST EXTENDED_ARG LOAD_CONST LOAD_FAST LOAD_FAST_BORROW "
    "LOAD_FAST_BORROW_LOAD_FAST_BORROW LOAD_FAST_LOAD_FAST NOP RESUME "
    "RETURN_CONST RETURN_VALUE ROT_FOUR ROT_THREE ROT_TWO STORE_ATTR "
    "SWAP".split()
)


def unsupported_reason(cls):
    if type(cls) is not type or not dataclasses.is_dataclass(cls):
        return "it is not a dataclass, or it has a metaclass"
    names = [field.name for field in dataclasses.fields(cls)]
    return _unsupported_class(cls, names) or _unsupported_init(cls, names)


cdef object _unsupported_class(cls, names):
    """The reason why setting a field is no write to `__dict__`, or None."""
    for name in ("__new__", "__setattr__", "__getattribute__"):
        if getattr(cls, name) is not getattr(object, name):
            return f"it has a {name}"
    for name in names:
        for base in cls.__mro__:
            if name in vars(base):
                kind = type(vars(base)[name])
                if hasattr(kind, "__set__") or hasattr(kind, "__delete__"):
                    return f"its {name} is not a plain field"
                break
    if not cls.__dictoffset__:
        return "its instances have no __dict__"
    return None


cdef object _unsupported_init(cls, names):
    """The reason why `__init__` is more than setting fields, or None."""
    init = vars(cls).get("__init__")
    if type(init) is not FunctionType:
        return "its __init__ is not a function of its own"
    if init.__code__.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return "its __init__ has * or ** parameters"
    for each in dis.get_instructions(init):
        if each.opname not in _MOVES:
            return f"its __init__ does more than set fields: {each.opname}"
        if each.opname == "STORE_ATTR" and each.argval not in names:
            return f"its __init__ sets {each.argval}, which is not a field"
    given = {name: object() for name in _parameters(init)}
    try:
        held = vars(type.__call__(cls, **given))
    except Exception as error:
        return f"its __init__ fails: {error}"
    for name in names:
        if held.get(name, _MISSING) is not given.get(name):
            return f"its __init__ does not set {name} to its argument"
    return None


cdef dict _parameters(init):
    """The parameters after the first, each with its default or _MISSING."""
    code = init.__code__
    positional = code.co_varnames[:code.co_argcount]
    count = code.co_argcount + code.co_kwonlyargcount
    defaults = init.__defaults__ or ()
    return {
        **dict.fromkeys(code.co_varnames[1:count], _MISSING),
        **dict(zip(reversed(positional), reversed(defaults))),
        **(init.__kwdefaults__ or {}),
    }


@cython.final
@cython.auto_pickle(False)
cdef class _Construction:
    """An accelerated class, and what its instances start from."""

    cdef object cls
    cdef object init
    # What `init` consisted of, and what keeps it alive.
    cdef PyObject* code
    cdef PyObject* defaults
    cdef PyObject* kwdefaults
    cdef tuple alive
    # The fields as `init` sets them, with their defaults, or _MISSING; and how
    # many parameters have none.
    cdef dict namespace
    cdef tuple names
    cdef Py_ssize_t required
    # The version tag of the class when it was last found unchanged, else -1.
    # CPython assigns another one after any change of the class or of a base.
    # Comparing it replaces all checks; the lookup of `__init__` alone would
    # cost 140 instructions.
    cdef long long version
    # The keywords of the last call (calls from one place pass the same tuple),
    # then the default of each: one tuple, so that threads replace both.
    cdef tuple last_call

    def __cinit__(self, cls):
        self.cls, self.init = cls, vars(cls)["__init__"]
        self.code = PyFunction_GET_CODE(self.init)
        self.defaults = PyFunction_GET_DEFAULTS(self.init)
        self.kwdefaults = PyFunction_GET_KW_DEFAULTS(self.init)
        self.alive = (
            self.init.__code__,
            self.init.__defaults__,
            self.init.__kwdefaults__,
        )
        parameters = _parameters(self.init)
        given = {n: v for n, v in parameters.items() if v is _MISSING}
        self.required = len(given)
        # The instance's own dictionary shares keys, and its copies are slow.
        self.namespace = dict(vars(type.__call__(cls, **given)).items())
        self.names = tuple(self.namespace)
        self.last_call = (None,)
        self.version = -1

    cdef inline bint is_unchanged(self) except -1:
        return (
            self.version == (<PyTypeObject*>self.cls).tp_version_tag
            or self.check_again()
        ) and (
            PyFunction_GET_CODE(self.init) == self.code
            and PyFunction_GET_DEFAULTS(self.init) == self.defaults
            and PyFunction_GET_KW_DEFAULTS(self.init) == self.kwdefaults
        )

    cdef bint check_again(self) except -1:
        self.version = -1
        if (
            vars(self.cls).get("__init__") is not self.init
            or _unsupported_class(self.cls, self.names) is not None
        ):
            return False
        # The lookups made CPython assign a tag, unless none is left.
        if (<PyTypeObject*>self.cls).tp_version_tag != 0:
            self.version = (<PyTypeObject*>self.cls).tp_version_tag
        return True

    cdef tuple analyze(self, tuple keywords):
        """The `last_call` of these keywords, None if `__init__` must run."""
        cdef Py_ssize_t required = 0
        defaults = []
        for keyword in keywords:
            if keyword not in self.namespace:
                return None
            default = self.namespace[keyword]
            defaults.append(default)
            required += default is _MISSING
        if required != self.required:
            return None
        call = self.last_call = (keywords, *defaults)
        return call

    cdef inline bint are_fields(self, dict namespace) except -1:
        """Whether a dictionary holds the fields and nothing else."""
        # Other attributes come after the fields, and a deletion leaves a gap.
        # So it is enough that the size is right and that the last field comes
        # last; comparing every key would cost 450 more instructions.
        cdef Py_ssize_t last = PyTuple_GET_SIZE(<PyObject*>self.names) - 1
        cdef Py_ssize_t position = last
        cdef PyObject* key
        return (
            len(namespace) == last + 1
            and PyDict_Next(namespace, &position, &key, NULL)
            and key == PyTuple_GET_ITEM(<PyObject*>self.names, last)
            and not PyDict_Next(namespace, &position, &key, NULL)
        )


# Of the class that is enabled. A vectorcall function has no state of its own.
cdef _Construction _construction = None


def enable(type cls not None):
    global _construction
    _construction = _Construction(cls)
    (<PyTypeObject*>cls).tp_vectorcall = <vectorcallfunc>_construct


def disable(type cls not None):
    global _construction
    (<PyTypeObject*>cls).tp_vectorcall = NULL
    _construction = None


cdef object _construct(
    object cls, PyObject** args, size_t nargsf, PyObject* keywords
):
    cdef _Construction construction = _construction
    cdef Py_ssize_t index, count = 0
    cdef Py_ssize_t positional = PyVectorcall_NARGS(nargsf)
    cdef dict namespace
    cdef tuple call
    if keywords != NULL:
        count = PyTuple_GET_SIZE(keywords)
        # Trainers pass all arguments by keyword.
        if (
            positional == 0
            and construction is not None
            and construction.cls is cls
            and construction.is_unchanged()
        ):
            call = construction.last_call
            if keywords != PyTuple_GET_ITEM(<PyObject*>call, 0):
                call = construction.analyze(<tuple>keywords)
            if call is not None:
                namespace = PyDict_Copy(construction.namespace)
                for index in range(count):  # Setting costs 200 instructions.
                    if args[index] != PyTuple_GET_ITEM(
                        <PyObject*>call, index + 1
                    ):
                        PyDict_SetItem(
                            namespace,
                            <object>PyTuple_GET_ITEM(keywords, index),
                            <object>args[index],
                        )
                return _instance(cls, namespace)
    # Out of memory, Cython 3.3.1 releases a list comprehension's item twice.
    arguments = []
    for index in range(positional):
        arguments.append(<object>args[index])
    return type.__call__(
        cls,
        *arguments,
        **{
            <object>PyTuple_GET_ITEM(keywords, index): <object>args[
                positional + index
            ]
            for index in range(count)
        },
    )


cdef inline object _instance(object cls, dict namespace):
    instance = PyType_GenericAlloc(<PyTypeObject*>cls, 0)
    if PY_VERSION_HEX < 0x030D0000:
        PyObject_GenericSetDict(instance, namespace, NULL)
    else:
        # After PyObject_GenericSetDict, CPython 3.13 would still read the
        # attributes from the instance itself.
        instance.__dict__ = namespace
    return instance


def copying(cls, original):
    names = {field.name for field in dataclasses.fields(cls)}
    cdef bint has_batch = names >= {"batch", "model_outputs"}
    cdef bint has_loss = "reduce_loss" in names  # 0.5 has none.

    # The fields that a batch processor sets on every step are parameters: as
    # keys of a dictionary they would cost 90 of 280 ns.
    def copy_with_updates(
        self,
        *,
        batch=_MISSING,
        model_outputs=_MISSING,
        reduce_loss=_MISSING,
        **kwargs,
    ):
        cdef _Construction construction = _construction
        cdef dict held, namespace = None
        if (
            construction is not None
            and type(self) is construction.cls
            and construction.is_unchanged()
        ):
            held = PyObject_GenericGetDict(self, NULL)
            if construction.are_fields(held):
                namespace = PyDict_Copy(held)
        cdef bint is_quick = namespace is not None
        cdef dict outputs = namespace if is_quick and has_batch else kwargs
        cdef dict loss = namespace if is_quick and has_loss else kwargs
        if batch is not _MISSING:
            PyDict_SetItem(outputs, "batch", batch)
        if model_outputs is not _MISSING:
            PyDict_SetItem(outputs, "model_outputs", model_outputs)
        if reduce_loss is not _MISSING:
            PyDict_SetItem(loss, "reduce_loss", reduce_loss)
        if namespace is None:
            return original(self, **kwargs)
        copy = _instance(type(self), namespace)
        if kwargs:
            for key, value in kwargs.items():
                if key in namespace:
                    PyDict_SetItem(namespace, key, value)
                elif hasattr(copy, key):
                    setattr(copy, key, value)
                else:
                    raise AttributeError(f"{key} is not a valid attribute")
        return copy

    return update_wrapper(copy_with_updates, original)
