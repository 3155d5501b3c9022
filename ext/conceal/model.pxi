"""The autoregressive model that both fit, and the bounds of what comes out."""


cdef double burg(Extrapolator c, Py_ssize_t order, double* out) noexcept nogil:
    """Fit ``x[t] = e[t] - sum of a[k] x[t - k]`` to x in _forward; the power of e.

    Burg 1967, with Hamming weights (Swingler 1979), which keep the frequency of tones true.
    Every reflection coefficient is held below 1, so the filter is stable; from the order at
    which nothing is left to explain, the coefficients are 0. ``out`` gets a[order] first and
    a[1] last, ready for a dot product with the past.
    """
    cdef Py_ssize_t window = c._window, n = window
    cdef double* f = c._forward
    cdef double* b = c._backward
    cdef double power = es_dot64(f, f, n) / n, least = 1e-12 * power + 1e-30
    cdef double k, cross, energy, low, high
    cdef double* a = out + order - 1        # a[-m] is coefficient m + 1
    cdef Py_ssize_t m, i
    for i in range(order):
        out[i] = 0.0
    memcpy(b, f, n * sizeof(double))
    memmove(f, f + 1, (n - 1) * sizeof(double))
    n -= 1
    cross = energy = 0.0
    for i in range(n):
        cross += c._weights[i] * (f[i] * b[i])
        energy += c._weights[i] * (f[i] * f[i] + b[i] * b[i])
    for m in range(order):
        if power <= least or energy <= 1e-30:
            break
        k = min(max(-2.0 * cross / energy, -0.99999), 0.99999)
        for i in range((m + 1) // 2):
            low, high = a[-i], a[-(m - 1 - i)]
            a[-i] = low + k * high
            a[-(m - 1 - i)] = high + k * low
        a[-m] = k
        power *= 1.0 - k * k
        n -= 1
        es_lattice(f, b, c._weights + (window - n) // 2, n, k, &cross, &energy)
    return power


cdef inline float clean(float x) noexcept nogil:
    """Not a number becomes 0, and nothing is louder than LIMIT."""
    return limited(x) if x == x else <float>0.0


cdef inline float limited(double x) noexcept nogil:
    return <float>min(max(x, -LIMIT), LIMIT)
