"""The times that a HookProfiler keeps, whose memory does not grow."""

cimport cython
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from *:
    """
    /* Eight buckets for each power of two, from 1 ns to 52 days: the place
       of the highest bit, and the next three. */
    static inline int bucket_of(long long time) {
        if (time < 8) return time < 0 ? 0 : (int)time;
        int exponent = 63 - __builtin_clzll((unsigned long long)time);
        int bucket = 8 * (exponent - 2) + (int)((time >> (exponent - 3)) & 7);
        return bucket < 400 ? bucket : 399;
    }
    """
    int bucket_of(long long time)


@cython.final
@cython.auto_pickle(False)
cdef class Stats:
    # Count, sum, extremes and a histogram of times, in nanoseconds. Threads
    # share it: no method releases the interpreter's lock. A scope calls `open`
    # before the work that is timed and `close` after it, also if it raised.

    cdef int add(self, long long time) except -1:
        if self.count == 0 or time < self.minimum:
            self.minimum = time
        if time > self.maximum:
            self.maximum = time
        self.count += 1
        self.sum += time
        self.histogram[bucket_of(time)] += 1
        return 0

    def record(self, time):
        self.add(time)

    def quantile(self, q):
        """Estimates a quantile from the histogram, to within 7%."""
        cdef long long left = max(1, int(q * self.count + 0.5))
        cdef int bucket
        for bucket in range(BUCKETS):
            left -= self.histogram[bucket]
            if left <= 0:
                # Up to 15 ns each bucket holds one time.
                value = _least(bucket) if bucket < 16 else (
                    (_least(bucket) + _least(bucket + 1)) / 2
                )
                return min(max(value, self.minimum), self.maximum)
        return 0.0

    def copy(self):
        cdef Stats copy = Stats.__new__(Stats)
        copy.count, copy.sum = self.count, self.sum
        copy.minimum, copy.maximum = self.minimum, self.maximum
        memcpy(copy.histogram, self.histogram, sizeof(self.histogram))
        return copy

    def clear(self):
        self.count = self.sum = self.minimum = self.maximum = 0
        memset(self.histogram, 0, sizeof(self.histogram))


cdef double _least(int bucket):  # The least time that falls into it.
    if bucket < 16:
        return bucket
    return <double>(8 + bucket % 8) * (<long long>1 << (bucket // 8 - 1))


cdef _checked(tuple hooks, rows):  # Dispatch does not check what it takes.
    if (
        type(rows) is not tuple
        or len(rows) != len(hooks)
        or set(map(type, rows)) - {Stats}
    ):
        raise TypeError(
            "stats_of has to return a tuple with one Stats for each hook"
        )
    return rows


@cython.final
@cython.auto_pickle(False)
cdef class Recorder:
    # `stats_of(hooks, phase)` returns a tuple of each hook's Stats, and is
    # called again when the hooks have changed. `current` is the hooks that
    # were timed last, with the Stats of their `before` and of their `after`.

    def __cinit__(self, stats_of, clock=None, after_scope=None):
        self.scopes = Stats()
        self.bodies = Stats()
        self._stats_of = stats_of
        self._clock = clock
        self._after_scope = after_scope

    cdef long long now(self) except? -1:
        cdef timespec time
        if self._clock is not None:
            return self._clock()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return <long long>time.tv_sec * 1_000_000_000 + time.tv_nsec

    cdef tuple rows(self, tuple hooks, str phase):
        # Read once: another thread may replace it, or forget it.
        cdef tuple current = self.current
        if current is None or current[0] is not hooks:
            befores = _checked(hooks, self._stats_of(hooks, "before"))
            afters = _checked(hooks, self._stats_of(hooks, "after"))
            current = self.current = (hooks, befores, afters)
        return current[1] if phase == "before" else current[2]

    def forget_hooks(self):
        self.current = None

    cdef int leave(
        self, long long entered, long long began, long long ended
    ) except -1:
        if began >= 0:
            self.bodies.add(ended - began)
        self.scopes.add(self.now() - entered)
        if self._after_scope is not None:
            self._after_scope()
        return 0
