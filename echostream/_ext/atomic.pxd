# cython: language_level=3
"""Atomic 64-bit integers and doubles, header-only. Loads acquire, stores release, the rest is both.

``atomic_take`` is the fetch-and-clear of bits that decides who owns a slot; it and
``atomic_publish`` are sequentially consistent, because two locations are compared there
(a bit and the number of the slot being read), which acquire and release do not order.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from * nogil:
    """
    #ifdef _MSC_VER
    #include <intrin.h>
    #include <string.h>
    #define es_load(p) _InterlockedOr64((volatile long long*)(p), 0)
    #define es_store(p, v) ((void)_InterlockedExchange64((volatile long long*)(p), (v)))
    #define es_add(p, v) ((void)_InterlockedExchangeAdd64((volatile long long*)(p), (v)))
    #define es_set(p, b) ((void)_InterlockedOr64((volatile long long*)(p), (long long)(b)))
    #define es_take(p, b) \
        ((unsigned long long)_InterlockedAnd64((volatile long long*)(p), ~(long long)(b)) & (b))
    #define es_publish(p, v) es_store(p, v)
    #define es_observe(p) es_load(p)
    static __inline double es_load_real(const double *p) {
        long long bits = es_load((long long *)p); double v; memcpy(&v, &bits, 8); return v;
    }
    static __inline void es_store_real(double *p, double v) {
        long long bits; memcpy(&bits, &v, 8); es_store((long long *)p, bits);
    }
    static __inline int es_lowest(unsigned long long b) {
        unsigned long i; _BitScanForward64(&i, b); return (int)i;
    }
    #else
    #define es_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define es_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    /* one writer for each counter: a load and a store, no locked instruction */
    #define es_add(p, v) \
        __atomic_store_n((p), __atomic_load_n((p), __ATOMIC_RELAXED) + (v), __ATOMIC_RELAXED)
    #define es_set(p, b) ((void)__atomic_fetch_or((p), (b), __ATOMIC_SEQ_CST))
    #define es_take(p, b) (__atomic_fetch_and((p), ~(b), __ATOMIC_SEQ_CST) & (b))
    #define es_publish(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    #define es_observe(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define es_lowest(b) __builtin_ctzll(b)
    static inline double es_load_real(const double *p) {
        double v; __atomic_load(p, &v, __ATOMIC_ACQUIRE); return v;
    }
    static inline void es_store_real(double *p, double v) { __atomic_store(p, &v, __ATOMIC_RELEASE); }
    #endif
    """
    int64_t atomic_load "es_load"(const int64_t* p)
    void atomic_store "es_store"(int64_t* p, int64_t v)
    void atomic_add "es_add"(int64_t* p, int64_t v)
    uint64_t atomic_load_bits "es_load"(const uint64_t* p)
    void atomic_set "es_set"(uint64_t* p, uint64_t bits)
    uint64_t atomic_take "es_take"(uint64_t* p, uint64_t bits)
    void atomic_publish "es_publish"(int64_t* p, int64_t v)
    int64_t atomic_observe "es_observe"(const int64_t* p)
    int lowest_bit "es_lowest"(uint64_t bits)
    double atomic_load_real "es_load_real"(const double* p)
    void atomic_store_real "es_store_real"(double* p, double v)
