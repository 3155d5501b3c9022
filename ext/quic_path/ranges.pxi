"""Sets of numbers: ranges with the methods of aioquic's ``RangeSet``, and a window of bits."""

cdef enum:
    INLINE_RANGES = 4
    INLINE_ITEMS = 8
    WINDOW = 1024  # as REORDERING_WINDOW in transport/quic/recovery.py
    WINDOW_WORDS = 16  # of 64 bits


@cython.final
cdef class Ranges:
    """Disjoint, ascending half-open ranges, held as pairs. Most sets have one or two."""

    cdef Py_ssize_t count
    cdef Py_ssize_t room
    cdef int64_t *items
    cdef int64_t few[INLINE_ITEMS]

    def __cinit__(self):
        self.items = self.few
        self.room = INLINE_RANGES

    def __dealloc__(self):
        if self.items != self.few:
            PyMem_Free(self.items)

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Make room for ``count`` ranges."""
        cdef int64_t *larger
        cdef Py_ssize_t room = self.room
        if count <= room:
            return 0
        while room < count:
            room *= 2
        larger = <int64_t *>PyMem_Malloc(<size_t>room * 2 * sizeof(int64_t))
        if larger == NULL:
            raise MemoryError
        memcpy(larger, self.items, <size_t>self.count * 2 * sizeof(int64_t))
        if self.items != self.few:
            PyMem_Free(self.items)
        self.items = larger
        self.room = room
        return 0

    cdef int _open(self, Py_ssize_t at, int64_t start, int64_t stop) except -1:
        """Insert a range at an index."""
        self.reserve(self.count + 1)
        memmove(
            self.items + 2 * at + 2,
            self.items + 2 * at,
            <size_t>(self.count - at) * 2 * sizeof(int64_t),
        )
        self.items[2 * at] = start
        self.items[2 * at + 1] = stop
        self.count += 1
        return 0

    cdef void _close(self, Py_ssize_t at, Py_ssize_t gone) noexcept:
        """Remove ``gone`` ranges from an index on."""
        memmove(
            self.items + 2 * at,
            self.items + 2 * (at + gone),
            <size_t>(self.count - at - gone) * 2 * sizeof(int64_t),
        )
        self.count -= gone

    cdef Py_ssize_t _ending_from(self, int64_t number) noexcept:
        """The first range that ends at ``number`` or after it. Most look for the last one."""
        cdef Py_ssize_t low = 0, high = self.count, middle
        if high and self.items[2 * high - 1] < number:
            return high
        while low < high:
            middle = (low + high) >> 1
            if self.items[2 * middle + 1] < number:
                low = middle + 1
            else:
                high = middle
        return low

    cdef int insert(self, int64_t start, int64_t stop) except -1:
        cdef Py_ssize_t first = self._ending_from(start), last
        if first == self.count or stop < self.items[2 * first]:
            return self._open(first, start, stop)
        start = min(start, self.items[2 * first])
        last = first
        while last < self.count and self.items[2 * last] <= stop:
            stop = max(stop, self.items[2 * last + 1])
            last += 1
        self._close(first, last - first - 1)
        self.items[2 * first] = start
        self.items[2 * first + 1] = stop
        return 0

    cdef int remove(self, int64_t start, int64_t stop) except -1:
        cdef Py_ssize_t at = self._ending_from(start), last
        cdef int64_t end
        if at < self.count and self.items[2 * at + 1] == start:
            at += 1
        if at < self.count and self.items[2 * at] < start:
            end = self.items[2 * at + 1]
            self.items[2 * at + 1] = start
            at += 1
            if end > stop:
                return self._open(at, stop, end)
        last = at
        while last < self.count and self.items[2 * last + 1] <= stop:
            last += 1
        self._close(at, last - at)
        if at < self.count and self.items[2 * at] < stop:
            self.items[2 * at] = stop
        return 0

    cdef bint holds(self, int64_t number) noexcept:
        cdef Py_ssize_t at = self._ending_from(number + 1)
        return at < self.count and self.items[2 * at] <= number

    def add(self, int64_t start, stop=None):
        """Add ``start`` up to ``stop``; without ``stop`` one number."""
        cdef int64_t end = start + 1 if stop is None else stop
        if end <= start:
            raise ValueError("an empty range")
        self.insert(start, end)

    def subtract(self, int64_t start, int64_t stop):
        """Take out ``start`` up to ``stop``."""
        if stop <= start:
            raise ValueError("an empty range")
        self.remove(start, stop)

    def shift(self):
        """Take out the lowest range and return it."""
        first = self[0]
        self._close(0, 1)
        return first

    def bounds(self):
        """From the lowest number to the highest."""
        return range(self[0].start, self[self.count - 1].stop)

    def __bool__(self):
        raise NotImplementedError

    def __contains__(self, int64_t number):
        return self.holds(number)

    def __eq__(self, other):
        return list(self) == list(other)

    def __getitem__(self, Py_ssize_t index):
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError("no such range")
        return range(self.items[2 * index], self.items[2 * index + 1])

    def __len__(self):
        return self.count

    def __repr__(self):
        return f"Ranges({list(self)!r})"


@cython.final
cdef class NumberWindow:
    """Which of the latest packet numbers were received: one bit each. What is below the window
    counts as received. Twin of ``PacketNumberWindow`` in transport/quic/recovery.py."""

    cdef int64_t lower
    cdef uint64_t bits[WINDOW_WORDS]

    cdef bint holds(self, int64_t number) noexcept:
        if number < self.lower:
            return True
        if number >= self.lower + WINDOW:
            return False
        return self.bits[(number % WINDOW) >> 6] >> (number & 63) & 1

    cdef void insert(self, int64_t number) noexcept:
        cdef int64_t lower = number - WINDOW + 1, each
        if number < self.lower:
            return
        if lower > self.lower:
            if lower - self.lower >= WINDOW:
                memset(self.bits, 0, sizeof(self.bits))
            else:
                for each in range(self.lower, lower):
                    self.bits[(each % WINDOW) >> 6] &= ~(<uint64_t>1 << (each & 63))
            self.lower = lower
        self.bits[(number % WINDOW) >> 6] |= <uint64_t>1 << (number & 63)

    def add(self, int64_t number):
        """Note that ``number`` was received."""
        self.insert(number)

    def __contains__(self, int64_t number):
        return self.holds(number)
