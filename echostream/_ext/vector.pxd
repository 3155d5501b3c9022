"""The inner sums of the audio kernels, 16 bytes at a time. Header only.

A compiler may not reorder a float sum, so that a plain loop stays scalar without -ffast-math. The
partial sums are spelled out with the vector extension of gcc and clang, which every target
of theirs lowers to its own registers; other compilers get the plain loop. The conversions of
samples are plain loops of a shape that compilers vectorise by themselves, and spelled out where x86 can do
better.
"""

from libc.stdint cimport int16_t

cdef extern from * nogil:
    """
    #ifndef ECHOSTREAM_VECTOR
    #define ECHOSTREAM_VECTOR
    #include <stddef.h>
    #include <stdint.h>
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #endif

    #if defined(__GNUC__)
    #define ES_RESTRICT __restrict__
    typedef float es_f4 __attribute__((vector_size(16), aligned(4), may_alias));
    typedef double es_d2 __attribute__((vector_size(16), aligned(8), may_alias));
    #define ES_F4(p) (*(const es_f4 *)(p))
    #define ES_D2(p) (*(const es_d2 *)(p))
    static inline float es_sum4(es_f4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
    #elif defined(_MSC_VER)
    #define ES_RESTRICT __restrict
    #else
    #define ES_RESTRICT
    #endif

    /* sum of a[i] * b[i] */
    static inline float es_dot(const float *a, const float *b, ptrdiff_t n)
    {
        ptrdiff_t i = 0;
        float sum = 0.0f;
    #if defined(__GNUC__)
        const ptrdiff_t whole = n & ~(ptrdiff_t)15;
        es_f4 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (; i < whole; i += 16) {
            s0 += ES_F4(a + i) * ES_F4(b + i);
            s1 += ES_F4(a + i + 4) * ES_F4(b + i + 4);
            s2 += ES_F4(a + i + 8) * ES_F4(b + i + 8);
            s3 += ES_F4(a + i + 12) * ES_F4(b + i + 12);
        }
        sum = es_sum4((s0 + s1) + (s2 + s3));
    #endif
        for (; i < n; i++) sum += a[i] * b[i];
        return sum;
    }

    static inline double es_dot64(const double *a, const double *b, ptrdiff_t n)
    {
        ptrdiff_t i = 0;
        double sum = 0.0;
    #if defined(__GNUC__)
        const ptrdiff_t whole = n & ~(ptrdiff_t)7;
        es_d2 s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (; i < whole; i += 8) {
            s0 += ES_D2(a + i) * ES_D2(b + i);
            s1 += ES_D2(a + i + 2) * ES_D2(b + i + 2);
            s2 += ES_D2(a + i + 4) * ES_D2(b + i + 4);
            s3 += ES_D2(a + i + 6) * ES_D2(b + i + 6);
        }
        s0 = (s0 + s1) + (s2 + s3);
        sum = s0[0] + s0[1];
    #endif
        for (; i < n; i++) sum += a[i] * b[i];
        return sum;
    }

    /* One step of Burg's lattice, in place: f[i], b[i] = f[i+1] + k b[i+1], b[i] + k f[i]
       for i < n; *cross and *energy are the sums over the new f and b, weighted by w. */
    static inline void es_lattice(double *f, double *b, const double *w, ptrdiff_t n, double k,
                                  double *cross, double *energy)
    {
        ptrdiff_t i = 0;
        double x, y;
        *cross = *energy = 0.0;
    #if defined(__GNUC__)
        es_d2 c = {0}, e = {0}, kk = {k, k}, u, v;
        for (; i + 2 <= n; i += 2) {
            u = ES_D2(f + i + 1) + kk * ES_D2(b + i + 1);
            v = ES_D2(b + i) + kk * ES_D2(f + i);
            *(es_d2 *)(f + i) = u;
            *(es_d2 *)(b + i) = v;
            c += ES_D2(w + i) * (u * v);
            e += ES_D2(w + i) * (u * u + v * v);
        }
        *cross = c[0] + c[1];
        *energy = e[0] + e[1];
    #endif
        for (; i < n; i++) {
            x = f[i + 1] + k * b[i + 1];
            y = b[i] + k * f[i];
            f[i] = x;
            b[i] = y;
            *cross += w[i] * (x * y);
            *energy += w[i] * (x * x + y * y);
        }
    }

    /* sum of (row[i] + t * slope[i]) * x[i]; n is a multiple of 8 */
    static inline float es_filter(const float *row, const float *slope, float t,
                                  const float *x, ptrdiff_t n)
    {
        ptrdiff_t i;
    #if defined(__GNUC__)
        es_f4 s0 = {0}, s1 = {0}, tt = {t, t, t, t};
        for (i = 0; i < n; i += 8) {
            s0 += (ES_F4(row + i) + tt * ES_F4(slope + i)) * ES_F4(x + i);
            s1 += (ES_F4(row + i + 4) + tt * ES_F4(slope + i + 4)) * ES_F4(x + i + 4);
        }
        return es_sum4(s0 + s1);
    #else
        float sum = 0.0f;
        for (i = 0; i < n; i++) sum += (row[i] + t * slope[i]) * x[i];
        return sum;
    #endif
    }

    /* the same filter over x and y at once: out[0] and out[1] */
    static inline void es_filter_two(const float *row, const float *slope, float t, const float *x,
                                     const float *y, ptrdiff_t n, float *out)
    {
    #if defined(__GNUC__)
        ptrdiff_t i;
        es_f4 a0 = {0}, a1 = {0}, b0 = {0}, b1 = {0}, tt = {t, t, t, t}, c;
        for (i = 0; i < n; i += 8) {
            c = ES_F4(row + i) + tt * ES_F4(slope + i);
            a0 += c * ES_F4(x + i);
            b0 += c * ES_F4(y + i);
            c = ES_F4(row + i + 4) + tt * ES_F4(slope + i + 4);
            a1 += c * ES_F4(x + i + 4);
            b1 += c * ES_F4(y + i + 4);
        }
        out[0] = es_sum4(a0 + a1);
        out[1] = es_sum4(b0 + b1);
    #else
        out[0] = es_filter(row, slope, t, x, n);
        out[1] = es_filter(row, slope, t, y, n);
    #endif
    }

    /* 32768 to one. Written so that a compiler makes vectors of it: no call, no early exit. */
    static inline void es_to_float(const int16_t *ES_RESTRICT x, float *ES_RESTRICT y, ptrdiff_t n)
    {
        ptrdiff_t i;
        for (i = 0; i < n; i++) y[i] = x[i] * (1.0f / 32768.0f);
    }

    /* The way back: nearest, ties to even, saturating; NaN is 0. x86 has all of it but the NaN and
       the upper bound in two instructions. Elsewhere: comparing floats may trap, which keeps gcc
       from vectors, so the magnitude is bounded as the integer that its bits are; and adding
       1.5 * 2**23 rounds a float of less than 2**22 to an integer, which then stands in its low
       bits, where rintf would be a call. */
    static inline void es_to_int16(const float *ES_RESTRICT x, int16_t *ES_RESTRICT y, ptrdiff_t n)
    {
        ptrdiff_t i = 0;
    #if defined(__SSE2__)
        const __m128 unit = _mm_set1_ps(32768.0f), most = _mm_set1_ps(32767.0f);
        for (; i + 8 <= n; i += 8) {
            __m128 a = _mm_loadu_ps(x + i), b = _mm_loadu_ps(x + i + 4);
            a = _mm_min_ps(_mm_mul_ps(_mm_and_ps(a, _mm_cmpord_ps(a, a)), unit), most);
            b = _mm_min_ps(_mm_mul_ps(_mm_and_ps(b, _mm_cmpord_ps(b, b)), unit), most);
            _mm_storeu_si128((__m128i *)(y + i),
                             _mm_packs_epi32(_mm_cvtps_epi32(a), _mm_cvtps_epi32(b)));
        }
    #endif
        for (; i < n; i++) {
            union { float real; int32_t bits; } v;
            int32_t size, sign, word;
            v.real = x[i] * 32768.0f;
            size = v.bits & 0x7FFFFFFF;
            sign = v.bits ^ size;
            size = size > 0x7F800000 ? 0 : size;
            size = size < 0x47000000 ? size : 0x47000000;
            v.bits = size | sign;
            v.real += 12582912.0f;
            word = v.bits - 0x4B400000;
            y[i] = (int16_t)(word < 32767 ? word : 32767);
        }
    }
    #endif
    """
    void es_to_float(const int16_t* x, float* y, Py_ssize_t n) noexcept
    void es_to_int16(const float* x, int16_t* y, Py_ssize_t n) noexcept
    float es_dot(const float* a, const float* b, Py_ssize_t n) noexcept
    double es_dot64(const double* a, const double* b, Py_ssize_t n) noexcept
    void es_lattice(
        double* f, double* b, const double* w, Py_ssize_t n, double k,
        double* cross, double* energy
    ) noexcept
    float es_filter(
        const float* row, const float* slope, float t, const float* x, Py_ssize_t n
    ) noexcept
    void es_filter_two(
        const float* row, const float* slope, float t, const float* x, const float* y,
        Py_ssize_t n, float* out
    ) noexcept
