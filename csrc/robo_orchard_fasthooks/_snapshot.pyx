"""Whether the gradients of parameters are still where, and what, they were.

torch's part of DLPack (its C exchange API, of torch 2.10 and later) tells that
without a call of Python: 20 ns for each gradient.
"""

cimport cython
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memset

cdef extern from *:
    """
    #include <stdint.h>
    /* DLTensor and DLPackExchangeAPI of dlpack.h 1.3. */
    typedef struct {
        char *data;
        int32_t device_type, device_id, ndim;
        uint8_t code, bits;
        uint16_t lanes;
    } Head;
    typedef struct {
        Head head;
        int64_t *shape, *strides;
        uint64_t byte_offset;
    } View;
    typedef struct {
        uint32_t major, minor;
        void *previous, *allocate, *from_tensor, *to_tensor;
        int (*view)(void *tensor, View *view);
        void *current_stream;
    } Exchange;
    """
    ctypedef struct Head:
        char *data
        int ndim
    ctypedef struct View:
        Head head
        int64_t *shape
        int64_t *strides
        uint64_t byte_offset
    ctypedef struct Exchange:
        uint32_t major
        int (*view)(void *tensor, View *view) except -1


@cython.final
@cython.auto_pickle(False)
cdef class Snapshot:
    # Each gradient has to be of `kind`, which is torch.Tensor, or None.

    cdef object kind
    cdef Exchange *api
    cdef bytes seen

    def __cinit__(self, list params, kind):
        capsule = kind.__dlpack_c_exchange_api__
        self.api = <Exchange *>PyCapsule_GetPointer(
            capsule, "dlpack_exchange_api"
        )
        if self.api.major != 1:
            raise AttributeError("only DLPack 1 is supported")
        self.kind = kind
        self.seen = b"".join([self.record(param.grad) for param in params])

    cdef int look(self, grad, View *view) except -1:
        if grad is None:
            memset(view, 0, sizeof(View))  # No device has the number 0.
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
            except Exception:  # Such as of a sparse gradient.
                return False
            if seen == end or memcmp(&view.head, seen, sizeof(Head)):
                return False
            seen += sizeof(Head)
            size = view.head.ndim * sizeof(int64_t)
            if memcmp(view.shape, seen, size):
                return False
            seen += size
            if memcmp(view.strides, seen, size):
                return False
            seen += size
        return seen == end
