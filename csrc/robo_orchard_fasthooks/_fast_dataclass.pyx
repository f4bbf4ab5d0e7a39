"""Fast construction and copies of arguments that are a plain dataclass.

RoboOrchardLab's own arguments keep their class. To construct one, Python makes
a dictionary of the keywords and a frame, and sets one attribute after the
other. This module gives a new instance a copy of a dictionary of the defaults,
and sets only the arguments that differ from them, which needs 40 % of the
instructions. To copy an instance, it copies its dictionary, which needs 15 %
(CPython 3.11).

Later changes of the class take effect, and so does a new value of
`__init__.__code__`, `__defaults__` or `__kwdefaults__`: Python then calls the
class in the usual way. Only a change inside the dictionary `__kwdefaults__` is
not noticed.
"""

import dataclasses
import dis
import inspect
from functools import update_wrapper
from types import FunctionType

cimport cython
from cpython.dict cimport PyDict_Copy, PyDict_Next, PyDict_SetItem
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef object (*vectorcallfunc)(
        object callable, PyObject** args, size_t nargsf, PyObject* keywords
    )
    ctypedef struct PyTypeObject:
        void* tp_new
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
    int PyObject_GenericSetDict(
        object instance, object value, void* context
    ) except -1

cdef object _MISSING = object()
# Instructions whose effect does not depend on the values: what code that
# consists of these did once, it always does. They are compared by name because
# their numbers differ between versions of CPython.
cdef frozenset _HARMLESS = frozenset(
    [
        "CACHE",
        "DELETE_FAST",
        "EXTENDED_ARG",
        "LOAD_CONST",
        "LOAD_FAST",
        "LOAD_FAST_BORROW",
        "LOAD_FAST_BORROW_LOAD_FAST_BORROW",
        "LOAD_FAST_LOAD_FAST",
        "NOP",
        "RESUME",
        "RETURN_CONST",
        "RETURN_VALUE",
        "ROT_FOUR",
        "ROT_THREE",
        "ROT_TWO",
        "STORE_ATTR",
        "SWAP",
    ]
)


def unsupported_reason(cls):
    """Returns the reason why a class cannot be accelerated, if there is one.

    Its calls and copies can be if its instances have a dictionary and its
    `__init__`, generated or written by hand, does nothing but set each field
    to the argument of that name. It may have more parameters, which it
    ignores.

    Args:
        cls (type): The class.

    Returns:
        str | None: The reason, or None if the class can be accelerated.
    """
    if type(cls) is not type or "__dataclass_fields__" not in vars(cls):
        return "it is not itself a dataclass, or it has a metaclass"
    if hasattr(cls, "__post_init__"):
        return "it has a __post_init__"
    fields = dataclasses.fields(cls)
    for field in fields:
        if field.default_factory is not dataclasses.MISSING:
            return f"its {field.name} is not a plain field"
    names = [field.name for field in fields]
    return _unsupported_class(cls, names) or _unsupported_init(cls, names)


cdef object _unsupported_class(cls, names):
    """The reason why setting a field is more than writing to `__dict__`."""
    if (<PyTypeObject*>cls).tp_new != (<PyTypeObject*>object).tp_new:
        return "it has a __new__"
    for name in ("__setattr__", "__getattribute__"):
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


cdef object _unsupported_init(cls, list names):
    """The reason why `__init__` is more than setting fields, or None."""
    init = vars(cls).get("__init__")
    if type(init) is not FunctionType:
        return "its __init__ is not a function of its own"
    code = init.__code__
    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return "its __init__ has * or ** parameters"
    if code.co_posonlyargcount > 1:
        return "its __init__ has positional-only parameters"
    for each in dis.get_instructions(code):
        if each.opname not in _HARMLESS:
            return f"its __init__ does more than set fields: {each.opname}"
        if each.opname == "STORE_ATTR" and each.argval not in names:
            return f"its __init__ sets {each.argval}, which is not a field"
    parameters = _parameters(init)
    for name, default in parameters.items():
        if default is _MISSING and name not in names:
            return f"its __init__ requires {name}, which is not a field"
    given = {name: object() for name in parameters}
    try:
        held = _trial(cls, init, given)
    except Exception as error:
        return f"its __init__ fails: {error}"
    for name in names:
        if name not in held or held[name] is not given.get(name):
            return f"its __init__ does not set {name} to its argument"
    required = [name for name in parameters if parameters[name] is _MISSING]
    held = _trial(cls, init, {name: given[name] for name in required})
    for name in names:
        default = parameters[name]
        if held[name] is not (given[name] if default is _MISSING else default):
            return f"its __init__ does not set {name} to its default"
    return None


cdef dict _parameters(init):
    """The parameters after the first, each with its default or _MISSING."""
    code = init.__code__
    positional = code.co_varnames[:code.co_argcount]
    count = code.co_argcount + code.co_kwonlyargcount
    parameters = dict.fromkeys(code.co_varnames[1:count], _MISSING)
    defaults = init.__defaults__ or ()
    parameters.update(
        zip(positional[len(positional) - len(defaults):], defaults)
    )
    parameters.update(init.__kwdefaults__ or {})
    return parameters


cdef dict _trial(cls, init, dict arguments):
    """The dictionary of a new instance that `init` was called with."""
    instance = object.__new__(cls)
    if init(instance, **arguments) is not None:
        raise TypeError("it returns a value")
    return vars(instance)


@cython.final
@cython.auto_pickle(False)
cdef class _Construction:
    """An accelerated class, and what its instances start from."""

    cdef object cls
    cdef object init
    # The attributes of `init` when it was analyzed.
    cdef object code
    cdef object defaults
    cdef object kwdefaults
    # The fields in the order in which `init` sets them; the default of each,
    # _MISSING if it has none; both as a dictionary; and how many have none.
    cdef tuple names
    cdef tuple values
    cdef dict namespace
    cdef Py_ssize_t required
    # The version tag of the class when it was last checked and found to be
    # unchanged, else -1. CPython invalidates the tag whenever an attribute of
    # the class or of a base is set, and then assigns another one. Comparing it
    # replaces all checks; the lookup of `__init__` alone would cost 140
    # instructions.
    cdef long long version
    # The keywords of the last call and the default of each, borrowed from
    # `values`. Calls from one place in a program pass the same tuple.
    cdef tuple keywords
    cdef PyObject** keyword_defaults

    def __cinit__(self, cls):
        self.cls, self.init = cls, vars(cls)["__init__"]
        self.code = self.init.__code__
        self.defaults = self.init.__defaults__
        self.kwdefaults = self.init.__kwdefaults__
        parameters = _parameters(self.init)
        given = {n: v for n, v in parameters.items() if v is _MISSING}
        # Not the dictionary of the trial itself, which shares its keys with
        # the class: the interpreter cannot specialise access to its copies.
        self.namespace = {
            name: parameters[name]
            for name in _trial(cls, self.init, given)
        }
        self.names = tuple(self.namespace)
        self.values = tuple(self.namespace.values())
        self.required = self.values.count(_MISSING)
        self.version = -1
        self.keyword_defaults = <PyObject**>PyMem_Malloc(
            len(self.names) * sizeof(PyObject*) + 1
        )
        if self.keyword_defaults == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.keyword_defaults)

    cdef inline bint is_unchanged(self) except -1:
        return (
            self.version == (<PyTypeObject*>self.cls).tp_version_tag
            or self.check_again()
        ) and (
            PyFunction_GET_CODE(self.init) == <PyObject*>self.code
            and is_same(PyFunction_GET_DEFAULTS(self.init), self.defaults)
            and is_same(PyFunction_GET_KW_DEFAULTS(self.init), self.kwdefaults)
        )

    cdef bint check_again(self) except -1:
        self.version = -1
        if (
            vars(self.cls).get("__init__") is not self.init
            or _unsupported_class(self.cls, self.names) is not None
        ):
            return False
        # The lookups made CPython assign a tag, unless it has none left (3.13
        # assigns 1,000 to one class); then every call is checked.
        if (<PyTypeObject*>self.cls).tp_version_tag != 0:
            self.version = (<PyTypeObject*>self.cls).tp_version_tag
        return True

    cdef bint remember(self, PyObject* keywords) except -1:
        """Finds the defaults of these keywords.

        Returns False if one of them is not a field, or if a field that has no
        default is not among them.
        """
        cdef Py_ssize_t index, field, required = 0
        cdef Py_ssize_t fields = PyTuple_GET_SIZE(<PyObject*>self.names)
        self.keywords = None
        if PyTuple_GET_SIZE(keywords) > fields:
            return False
        for index in range(PyTuple_GET_SIZE(keywords)):
            for field in range(fields):
                if PyTuple_GET_ITEM(keywords, index) == PyTuple_GET_ITEM(
                    <PyObject*>self.names, field
                ):
                    break
            else:
                return False
            self.keyword_defaults[index] = PyTuple_GET_ITEM(
                <PyObject*>self.values, field
            )
            if self.keyword_defaults[index] == <PyObject*>_MISSING:
                required += 1
        if required != self.required:
            return False
        self.keywords = <tuple>keywords
        return True

    cdef inline bint are_fields(self, dict namespace) except -1:
        """Whether a dictionary holds the fields and nothing else."""
        # Other attributes come after the fields, and a deletion leaves a gap
        # until the dictionary is copied. So it is enough that the size is
        # right, that the last field comes last and that nothing follows.
        # Comparing every key would cost 450 more instructions.
        cdef Py_ssize_t last = PyTuple_GET_SIZE(<PyObject*>self.names) - 1
        cdef Py_ssize_t position = last
        cdef PyObject* key
        return (
            len(namespace) == last + 1
            and PyDict_Next(namespace, &position, &key, NULL)
            and key == PyTuple_GET_ITEM(<PyObject*>self.names, last)
            and not PyDict_Next(namespace, &position, &key, NULL)
        )


cdef inline bint is_same(PyObject* found, object remembered):
    return found == <PyObject*>remembered or (
        found == NULL and remembered is None
    )


# Of the class that is enabled. A vectorcall function has no state of its own.
cdef _Construction _construction = None


def enable(cls):
    """Accelerates calls of a class, in place of the class before it.

    Only one class can be accelerated at a time. Its subclasses are not.

    Args:
        cls (type): A class for which `unsupported_reason` returns None.
    """
    global _construction
    _construction = _Construction(cls)
    (<PyTypeObject*>cls).tp_vectorcall = <vectorcallfunc>_construct


def disable(cls):
    """Undoes `enable`.

    Args:
        cls (type): The class.
    """
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
    if keywords != NULL:
        count = PyTuple_GET_SIZE(keywords)
        # Trainers pass all arguments by keyword.
        if (
            positional == 0
            and construction is not None
            and construction.cls is cls
            and construction.is_unchanged()
        ):
            # The allocation may start a garbage collection, whose finalizers
            # and other threads can call the class with other keywords. So it
            # comes before the keywords are looked up.
            namespace = PyDict_Copy(construction.namespace)
            if (
                keywords == <PyObject*>construction.keywords
                or construction.remember(keywords)
            ):
                for index in range(count):
                    # Setting a value costs 200 instructions.
                    if args[index] != construction.keyword_defaults[index]:
                        PyDict_SetItem(
                            namespace,
                            <object>PyTuple_GET_ITEM(keywords, index),
                            <object>args[index],
                        )
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
    """Returns a fast `copy_with_updates` for a class.

    Args:
        cls (type): A class for which `unsupported_reason` returns None.
        original (Callable): The `copy_with_updates` of the class. It is still
            called for subclasses, for instances with attributes that are not
            fields, and while the class is not enabled.

    Returns:
        Callable: The method.
    """
    # The fields that a batch processor sets on every step are parameters: as
    # keys of a dictionary they would cost 90 of 280 ns. A name that is not a
    # field must not be a parameter: if several names are invalid, the error
    # names the one given first, and only `kwargs` keeps the order.

    def with_loss(
        self,
        *,
        batch=_MISSING,
        model_outputs=_MISSING,
        reduce_loss=_MISSING,
        **kwargs,
    ):
        cdef dict namespace = _copied(self)
        cdef dict updates = kwargs if namespace is None else namespace
        if batch is not _MISSING:
            PyDict_SetItem(updates, "batch", batch)
        if model_outputs is not _MISSING:
            PyDict_SetItem(updates, "model_outputs", model_outputs)
        if reduce_loss is not _MISSING:
            PyDict_SetItem(updates, "reduce_loss", reduce_loss)
        if namespace is None:
            return original(self, **kwargs)
        return _updated(type(self), namespace, kwargs)

    def without_loss(
        self,
        *,
        batch=_MISSING,
        model_outputs=_MISSING,
        **kwargs,
    ):
        cdef dict namespace = _copied(self)
        cdef dict updates = kwargs if namespace is None else namespace
        if batch is not _MISSING:
            PyDict_SetItem(updates, "batch", batch)
        if model_outputs is not _MISSING:
            PyDict_SetItem(updates, "model_outputs", model_outputs)
        if namespace is None:
            return original(self, **kwargs)
        return _updated(type(self), namespace, kwargs)

    def of_any_fields(self, **kwargs):
        cdef dict namespace = _copied(self)
        if namespace is None:
            return original(self, **kwargs)
        return _updated(type(self), namespace, kwargs)

    names = {field.name for field in dataclasses.fields(cls)}
    if not names >= {"batch", "model_outputs"}:
        method = of_any_fields
    elif "reduce_loss" in names:
        method = with_loss
    else:
        method = without_loss
    return update_wrapper(method, original)


cdef inline dict _copied(object self):
    """The dictionary for a copy, None if `original` has to make the copy."""
    cdef _Construction construction = _construction
    cdef dict namespace
    if (
        construction is not None
        and type(self) is construction.cls
        and construction.is_unchanged()
    ):
        namespace = PyObject_GenericGetDict(self, NULL)
        if construction.are_fields(namespace):
            return PyDict_Copy(namespace)
    return None


cdef inline object _updated(object cls, dict namespace, dict updates):
    copy = _instance(cls, namespace)
    if updates:
        for key, value in updates.items():
            if key in namespace:
                PyDict_SetItem(namespace, key, value)
            elif hasattr(copy, key):
                setattr(copy, key, value)
            else:
                raise AttributeError(f"{key} is not a valid attribute")
    return copy
