"""What a HookProfiler keeps: times in a memory that does not grow with them."""

cimport cython
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
    """Count, sum, extremes and a histogram of times, in nanoseconds.

    Attributes:
        count (int): How many times there are.
        sum (int): Their sum.
        minimum (int): The least of them, 0 if there are none.
        maximum (int): The greatest.
        open (Callable[[], object] | None): Called before what is timed.
        close (Callable[[], object] | None): Called after it.
    """

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
        """Adds a time, in nanoseconds."""
        self.add(time)

    def quantile(self, q):
        """A quantile, within 13 % of the true one.

        Args:
            q (float): From 0 to 1.

        Returns:
            float: Nanoseconds; 0 if there are no times.
        """
        cdef long long left = max(1, int(q * self.count + 0.5))
        cdef int bucket
        for bucket in range(BUCKETS):
            left -= self.histogram[bucket]
            if left <= 0:
                # Up to 15 ns a bucket is one time.
                value = _least(bucket) if bucket < 16 else (
                    (_least(bucket) + _least(bucket + 1)) / 2
                )
                return min(max(value, self.minimum), self.maximum)
        return 0.0

    def clear(self):
        """Forgets all times."""
        self.count = self.sum = self.minimum = self.maximum = 0
        for bucket in range(BUCKETS):
            self.histogram[bucket] = 0


cdef double _least(int bucket):
    # The least time that falls into it.
    if bucket < 16:
        return bucket
    return <double>(8 + bucket % 8) * (<long long>1 << (bucket // 8 - 1))


@cython.final
@cython.auto_pickle(False)
cdef class Recorder:
    """Times the hooks of one channel, and its scopes.

    Args:
        stats_of (Callable[[tuple, str], tuple[Stats, ...]]): Gives the Stats of
            some hooks in a phase, in their order. Asked anew when the hooks of
            the channel change.
        clock (Callable[[], int] | None): Nanoseconds; the monotonic clock of
            the system if None.
        after_scope (Callable[[], object] | None): Called when a scope has been
            left.

    Attributes:
        scopes (Stats): Of whole scopes, hooks included.
        bodies (Stats): Of what they are around.
    """

    def __init__(self, stats_of, clock=None, after_scope=None):
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
        cdef tuple known = self._known
        if known is None or known[0] is not hooks:
            befores = self._stats_of(hooks, "before")
            afters = self._stats_of(hooks, "after")
            if not len(befores) == len(afters) == len(hooks):
                raise ValueError("there have to be Stats for each hook")
            known = self._known = (hooks, befores, afters)
        return known[1] if phase == "before" else known[2]

    def forget_hooks(self):
        """Lets go of the hooks."""
        self._known = None

    cdef int leave(
        self, long long entered, long long began, long long ended
    ) except -1:
        if began >= 0:
            self.bodies.add(ended - began)
        self.scopes.add(self.now() - entered)
        if self._after_scope is not None:
            self._after_scope()
        return 0
