cimport cython


cdef enum:
    BUCKETS = 400


@cython.final
cdef class Stats:
    cdef readonly long long count
    cdef readonly long long sum
    cdef readonly long long minimum
    cdef readonly long long maximum
    cdef long long[BUCKETS] histogram
    cdef public object open
    cdef public object close
    cdef int add(self, long long time) except -1


@cython.final
cdef class Recorder:
    cdef readonly Stats scopes
    cdef readonly Stats bodies
    cdef object _clock
    cdef object _stats_of
    cdef object _after_scope
    cdef readonly tuple current
    cdef long long now(self) except? -1
    cdef tuple rows(self, tuple hooks, str phase)
    cdef int leave(
        self, long long entered, long long began, long long ended
    ) except -1
