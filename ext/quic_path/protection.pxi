"""Packet protection (RFC 9001, section 5) with the ciphers that aioquic's contexts hold."""

cdef enum:
    NONCE = 12
    TAG = 16
    SAMPLE = 16
    LONGEST_NUMBER = 4
    LONGEST_ID = 20
    LONGEST_HEADER = 25  # flags, connection ID, packet number
    SENT_NUMBER = 2  # bytes of the packet numbers that are sent


@cython.final
cdef class Keys:
    """One direction of a ``CryptoPair``, made ready. aioquic's object stays the truth: when it
    changes keys, :meth:`follow` notices."""

    cdef object context
    cdef object aead
    cdef object transform  # the cipher's encrypt or decrypt
    cdef object mask
    cdef int64_t phase
    cdef bint seals
    cdef bint spin  # of the packet that was opened last
    cdef uint8_t iv[NONCE]

    def __cinit__(self, context, bint seals):
        self.context = context
        self.seals = seals

    cdef int follow(self) except -1:
        cdef object aead = self.context.aead
        cdef bytes iv
        if aead is self.aead:
            return 0
        cipher = aead._aead
        self.transform = cipher.encrypt if self.seals else cipher.decrypt
        self.mask = self.context.hp._encryptor.update
        self.phase = self.context.key_phase
        iv = aead._iv.to_bytes(NONCE, "big")
        memcpy(self.iv, PyBytes_AsString(iv), NONCE)
        self.aead = aead
        return 0

    cdef bytes nonce(self, int64_t number):
        cdef uint8_t made[NONCE]
        cdef uint64_t low = be64(self.iv + 4) ^ <uint64_t>number
        memcpy(made, self.iv, 4)
        put_be64(made + 4, low)
        return PyBytes_FromStringAndSize(<char *>made, NONCE)

    cdef bytes masking(self, const uint8_t *sample):
        cdef bytes mask = self.mask(PyBytes_FromStringAndSize(<const char *>sample, SAMPLE))
        if len(mask) < LONGEST_NUMBER + 1:
            raise ValueError("the cipher gave no mask")
        return mask

    cdef bytes open(
        self, const uint8_t *data, size_t size, size_t number_at, int64_t expected, int64_t *number
    ):
        """The payload of a short-header packet; ``None``: let the plain method see it."""
        cdef uint8_t header[LONGEST_HEADER]
        cdef uint8_t *mask
        cdef size_t length, each
        cdef int64_t truncated = 0, window
        cdef bytes masks
        if size < number_at + LONGEST_NUMBER + SAMPLE:
            return None
        masks = self.masking(data + number_at + LONGEST_NUMBER)
        mask = <uint8_t *>PyBytes_AsString(masks)
        memcpy(header, data, number_at + LONGEST_NUMBER)
        header[0] ^= mask[0] & 0x1F
        if header[0] & 0x18 or (header[0] >> 2 & 1) != self.phase:
            return None  # reserved bits, or a change of keys
        self.spin = header[0] >> 5 & 1
        length = (header[0] & 3) + 1
        for each in range(length):
            header[number_at + each] ^= mask[1 + each]
            truncated = truncated << 8 | header[number_at + each]
        window = <int64_t>1 << (8 * length)
        number[0] = (expected & ~(window - 1)) | truncated
        # RFC 9000, appendix A.3
        if number[0] <= expected - window // 2 and number[0] < (<int64_t>1 << 62) - window:
            number[0] += window
        elif number[0] > expected + window // 2 and number[0] >= window:
            number[0] -= window
        number_at += length
        try:
            return self.transform(
                self.nonce(number[0]),
                PyBytes_FromStringAndSize(<const char *>data + number_at, size - number_at),
                PyBytes_FromStringAndSize(<const char *>header, number_at),
            )
        except InvalidTag:
            return None

    cdef bytes seal(self, const uint8_t *packet, size_t header, size_t size, int64_t number):
        """The packet whose header and payload are in the ``size`` bytes at ``packet``."""
        cdef bytes sealed = self.transform(
            self.nonce(number),
            PyBytes_FromStringAndSize(<const char *>packet + header, size - header),
            PyBytes_FromStringAndSize(<const char *>packet, header),
        )
        cdef bytes made = PyBytes_FromStringAndSize(NULL, size + TAG)
        cdef uint8_t *out = <uint8_t *>PyBytes_AsString(made)
        cdef uint8_t *mask
        cdef bytes masks
        cdef size_t each
        if <size_t>len(sealed) != size - header + TAG:
            raise ValueError("the cipher's tag has another length")
        memcpy(out, packet, header)
        memcpy(out + header, PyBytes_AsString(sealed), <size_t>len(sealed))
        masks = self.masking(out + header + LONGEST_NUMBER - SENT_NUMBER)
        mask = <uint8_t *>PyBytes_AsString(masks)
        out[0] ^= mask[0] & 0x1F
        for each in range(<size_t>SENT_NUMBER):
            out[header - SENT_NUMBER + each] ^= mask[1 + each]
        return made
