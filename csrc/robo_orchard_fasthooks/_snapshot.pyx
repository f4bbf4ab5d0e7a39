"""Whether the gradients of parameters are still where, and what, they were.

torch tells that by the C exchange API of DLPack, without a call of Python.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport (
    int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
)
from libc.string cimport memcmp, memset


cdef struct Head:
    char *data
    int32_t device_type, device_id, ndim
    uint8_t code, bits
    uint16_t lanes


cdef struct View:  # DLTensor of dlpack.h.
    Head head
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset


cdef struct Exchange:  # DLPackExchangeAPI.
    uint32_t major, minor
    void *older_api
    void *allocate
    void *from_tensor
    void *to_tensor
    int (*view)(void *tensor, View *view) except -1


@cython.final
@cython.auto_pickle(False)
cdef class Snapshot:
    cdef object kind
    cdef Exchange *api
    cdef bytes seen  # Of each gradient: head, shape, strides.

    def __cinit__(self, list params, kind):
        self.kind = kind
        self.api = <Exchange *>PyCapsule_GetPointer(
            kind.__dlpack_c_exchange_api__, "dlpack_exchange_api"
        )
        if self.api.major != 1:
            raise AttributeError("DLPack has another version than 1")
        self.seen = b"".join([self.record(param.grad) for param in params])

    cdef int look(self, grad, View *view) except -1:
        if grad is None:
            memset(view, 0, sizeof(View))  # There is no device type 0.
            return 0
        if type(grad) is not self.kind:
            raise TypeError
        self.api.view(<void *>grad, view)
        view.head.data += view.byte_offset
        return 0

    cdef bytes record(self, grad):
        cdef View view
        self.look(grad, &view)
        cdef size_t size = view.head.ndim * sizeof(int64_t)
        return (
            (<char *>&view.head)[:sizeof(Head)]
            + (<char *>view.shape)[:size]
            + (<char *>view.strides)[:size]
        )

    def matches(self, list params):
        cdef View view
        cdef size_t size
        cdef const char *seen = self.seen
        cdef const char *end = seen + len(self.seen)
        for param in params:
            try:
                self.look(param.grad, &view)
            except Exception:  # As of a sparse gradient.
                return False
            if seen == end or memcmp(&view.head, seen, sizeof(Head)):
                return False
            seen += sizeof(Head)
            size = view.head.ndim * sizeof(int64_t)
            if (
                memcmp(view.shape, seen, size)
                or memcmp(view.strides, seen + size, size)
            ):
                return False
            seen += 2 * size
        return seen == end
