"""Many UDP datagrams per system call, on Linux: recvmmsg and sendmmsg, each way with the kernel
cutting and joining trains of datagrams (UDP_SEGMENT, UDP_GRO).

Sources: ``man 2 recvmmsg``, ``man 2 sendmmsg``, ``man 7 udp``. The twin on plain calls, and where
this is used, is transport/sockets.py.
"""

cimport cython
from cpython.bytes cimport (
    PyBytes_AsString,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_Size,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport (
    EAGAIN,
    EINTR,
    EINVAL,
    EIO,
    ENOPROTOOPT,
    EOPNOTSUPP,
    errno,
)
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

__all__ = ["BatchSocket"]

cdef extern from "<sys/socket.h>" nogil:
    """
    #include <netinet/in.h>
    #include <arpa/inet.h>
    #ifndef UDP_SEGMENT  /* the kernel's numbers: linux/udp.h */
    #define UDP_SEGMENT 103
    #endif
    #ifndef UDP_GRO
    #define UDP_GRO 104
    #endif
    #ifndef SOL_UDP
    #define SOL_UDP 17
    #endif
    #ifndef SOL_IP
    #define SOL_IP 0
    #endif
    #ifndef SOL_IPV6
    #define SOL_IPV6 41
    #endif
    """
    int AF_INET
    int AF_INET6
    int MSG_DONTWAIT
    int SOL_IP
    int SOL_IPV6
    int SOL_UDP
    int IP_TOS
    int IP_RECVTOS
    int IPV6_TCLASS
    int IPV6_RECVTCLASS
    int UDP_SEGMENT
    int UDP_GRO
    ctypedef unsigned int socklen_t
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        void *msg_name
        socklen_t msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    struct cmsghdr:
        size_t cmsg_len
        int cmsg_level
        int cmsg_type
    cmsghdr *CMSG_FIRSTHDR(msghdr *head)
    cmsghdr *CMSG_NXTHDR(msghdr *head, cmsghdr *control)
    unsigned char *CMSG_DATA(cmsghdr *control)
    size_t CMSG_LEN(size_t size)
    size_t CMSG_SPACE(size_t size)
    int recvmmsg(int fd, mmsghdr *heads, unsigned int count, int flags, void *timeout)
    int sendmmsg(int fd, mmsghdr *heads, unsigned int count, int flags)
    int getsockopt(int fd, int level, int option, void *value, socklen_t *size)
    int setsockopt(int fd, int level, int option, const void *value, socklen_t size)

cdef extern from "<arpa/inet.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)
    int inet_pton(int family, const char *text, void *address)
    uint16_t htons(uint16_t value)
    uint32_t htonl(uint32_t value)
    uint16_t ntohs(uint16_t value)
    uint32_t ntohl(uint32_t value)

cdef enum:
    IN_SLOTS = 8  # messages per recvmmsg: each may be a train, and one flooder must not have it all
    IN_SIZE = 65536  # the largest datagram, and the longest train
    # Between the buffers' beginnings: not a power of two, so that they share the cache's sets out.
    # Pages that no datagram has reached take no memory.
    IN_STRIDE = 65536 + 1344
    CONTROL_WORDS = 16  # 128 bytes, aligned as control messages have to be
    ECN = 3  # its bits in the type of service; ECT(0) is 2 (RFC 3168, section 5)
    OUT_SLOTS = 64  # messages per sendmmsg
    OUT_PIECES = 256  # datagrams per sendmmsg
    MOST_SEGMENTS = 64  # UDP_MAX_SEGMENTS of older kernels
    LONGEST_TRAIN = 65000
    SENDERS = 512  # addresses remembered, as text, of those who sent
    RECEIVERS = 2048  # and, in the kernel's form, of those who are sent to
    TEXT = 64

cdef uint8_t MAPPED[12]  # how the IPv6 addresses begin that stand for IPv4 ones
MAPPED[:] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255]


cdef struct Sender:
    socklen_t size  # 0: not used
    int ecn  # of the mark that the address tuple says
    sockaddr_in6 address  # large enough for an IPv4 one


cdef struct Incoming:
    mmsghdr heads[IN_SLOTS]
    iovec pieces[IN_SLOTS]
    sockaddr_in6 senders[IN_SLOTS]
    uint64_t control[IN_SLOTS][CONTROL_WORDS]
    Sender known[SENDERS]


cdef struct Outgoing:
    mmsghdr heads[OUT_SLOTS]
    iovec pieces[OUT_PIECES]
    uint64_t control[OUT_SLOTS][CONTROL_WORDS]
    Py_ssize_t first[OUT_SLOTS]  # the index of the first datagram of each


@cython.final
cdef class BatchSocket:
    """The descriptor of a bound, non-blocking UDP socket, read and written in batches. It stays
    the caller's, who closes it after the last call here. Not for two threads at once.

    ``marks``: three classes of tuples, what addresses of datagrams with ECT(1), ECT(0) and CE are
    made of. Datagrams to an address of the second leave as ECT(0). Without it there are no marks.
    """

    cdef readonly int error
    """The errno with which the last call ended early; 0 where it did not."""
    cdef readonly bint joins
    """Whether the kernel joins datagrams that arrive as a train."""
    cdef readonly bint cuts
    """Whether the kernel cuts a train into datagrams; off from the first time that it cannot."""
    cdef readonly uint64_t bytes_received
    cdef readonly uint64_t bytes_sent
    cdef int fd
    cdef int family
    cdef uint8_t *buffers
    cdef Incoming *incoming
    cdef Outgoing *outgoing
    cdef list names  # the address tuple of each that ``incoming.known`` holds
    cdef dict known  # address tuple to sockaddr
    cdef Py_ssize_t loaded
    cdef tuple marks
    cdef object ect0  # the class of addresses to which datagrams leave marked, or None
    cdef Py_ssize_t singly  # datagrams before this index are not put on trains

    def __cinit__(
        self, int fd, int family, *, bint join = True, bint cut = True, tuple marks = None
    ):
        cdef int each, value = 0
        cdef socklen_t size = sizeof(int)
        if family != AF_INET and family != AF_INET6:
            raise ValueError(f"family {family} is neither AF_INET nor AF_INET6")
        self.fd = fd
        self.family = family
        self.names = [None] * SENDERS
        self.known = {}
        self.buffers = <uint8_t *>PyMem_Malloc(IN_SLOTS * IN_STRIDE)
        self.incoming = <Incoming *>PyMem_Malloc(sizeof(Incoming))
        self.outgoing = <Outgoing *>PyMem_Malloc(sizeof(Outgoing))
        if self.buffers == NULL or self.incoming == NULL or self.outgoing == NULL:
            raise MemoryError
        memset(self.incoming, 0, sizeof(Incoming))
        memset(self.outgoing, 0, sizeof(Outgoing))
        for each in range(IN_SLOTS):
            self.incoming.pieces[each].iov_base = self.buffers + each * IN_STRIDE
            self.incoming.pieces[each].iov_len = IN_SIZE
            self.prepare(each)
        if cut:
            # A kernel that does not know the option would send a train as one datagram.
            self.cuts = not getsockopt(fd, SOL_UDP, UDP_SEGMENT, &value, &size)
        if marks is not None:
            if len(marks) != 3:
                raise ValueError("marks are three classes")
            self.marks = marks
            self.ect0 = marks[1]
            value = 1  # a dual-stack socket needs both, another knows one only
            setsockopt(fd, SOL_IP, IP_RECVTOS, &value, sizeof(int))
            setsockopt(fd, SOL_IPV6, IPV6_RECVTCLASS, &value, sizeof(int))
        if join:
            value = 1
            self.joins = not setsockopt(fd, SOL_UDP, UDP_GRO, &value, sizeof(int))

    def __dealloc__(self):
        PyMem_Free(self.buffers)
        PyMem_Free(self.incoming)
        PyMem_Free(self.outgoing)

    # Receiving

    def receive(self, Py_ssize_t limit):
        """The datagrams that wait, each with its sender's address. Where there are more than
        ``limit``: at least that many, and less than 512 more, because a train is taken whole."""
        cdef list taken = []
        cdef Py_ssize_t wanted, each
        cdef int count
        self.error = 0
        while len(taken) < limit:
            wanted = min(limit - len(taken), <Py_ssize_t>IN_SLOTS)
            count = recvmmsg(
                self.fd, self.incoming.heads, <unsigned int>wanted, MSG_DONTWAIT, NULL
            )
            if count < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    self.error = errno
                break
            for each in range(count):
                self.take(each, taken)
                self.prepare(each)
            if count < wanted:
                break
        return taken

    cdef void prepare(self, Py_ssize_t each) noexcept:
        """Make a slot ready for a message."""
        cdef msghdr *head = &self.incoming.heads[each].msg_hdr
        head.msg_name = &self.incoming.senders[each]
        head.msg_namelen = sizeof(sockaddr_in6)
        head.msg_iov = &self.incoming.pieces[each]
        head.msg_iovlen = 1
        head.msg_control = &self.incoming.control[each]
        head.msg_controllen = sizeof(self.incoming.control[each])

    cdef int take(self, Py_ssize_t each, list taken) except -1:
        """Append the datagram, or the train's datagrams, in a slot."""
        cdef mmsghdr *head = &self.incoming.heads[each]
        cdef const char *data = <const char *>self.incoming.pieces[each].iov_base
        cdef size_t size = min(<size_t>head.msg_len, <size_t>IN_SIZE)
        cdef size_t step = 0
        cdef size_t at = 0
        cdef int ecn = 0
        if self.joins or self.marks is not None:
            step = self.segment(&head.msg_hdr, &ecn)
        self.bytes_received += size
        address = self.sender(each, ecn)
        if address is None:
            return 0
        if not 0 < step < size:
            taken.append((PyBytes_FromStringAndSize(data, <Py_ssize_t>size), address))
            return 0
        while at < size:
            taken.append(
                (PyBytes_FromStringAndSize(data + at, <Py_ssize_t>min(step, size - at)), address)
            )
            at += step
        return 0

    cdef size_t segment(self, msghdr *head, int *ecn) noexcept:
        """The size of the datagrams that the kernel joined; 0: it is one. All have one mark."""
        cdef int value, size = 0
        cdef cmsghdr *control = CMSG_FIRSTHDR(head)
        while control != NULL:
            if control.cmsg_level == SOL_UDP and control.cmsg_type == UDP_GRO:
                memcpy(&size, CMSG_DATA(control), sizeof(int))
            elif control.cmsg_level == SOL_IP and control.cmsg_type == IP_TOS:
                ecn[0] = CMSG_DATA(control)[0] & ECN  # one byte here, an int there
            elif control.cmsg_level == SOL_IPV6 and control.cmsg_type == IPV6_TCLASS:
                memcpy(&value, CMSG_DATA(control), sizeof(int))
                ecn[0] = value & ECN
            control = CMSG_NXTHDR(head, control)
        return <size_t>size if size > 0 else 0

    cdef object sender(self, Py_ssize_t each, int ecn):
        """The address in a slot, as the socket module gives it, with its mark; the same tuple again
        while it is remembered. ``None`` for one of another family."""
        cdef const sockaddr_in6 *address = &self.incoming.senders[each]
        cdef const sockaddr_in *four = <const sockaddr_in *>address
        cdef socklen_t size
        cdef uint32_t place
        cdef Sender *known
        cdef char text[TEXT]
        if address.sin6_family == AF_INET:
            size = 8  # family, port, address: what follows is padding
            place = ntohl(four.sin_addr.s_addr)
        elif address.sin6_family == AF_INET6:
            size = sizeof(sockaddr_in6)
            place = address.sin6_addr.s6_addr[15]
        else:
            return None
        place = (place * 31 + ntohs(address.sin6_port)) % SENDERS
        known = &self.incoming.known[place]
        if known.size == size and known.ecn == ecn and not memcmp(&known.address, address, size):
            return self.names[place]
        if size == 8:
            if inet_ntop(AF_INET, &four.sin_addr, text, TEXT) == NULL:
                return None
            name = text.decode("ascii"), ntohs(four.sin_port)
        else:
            if inet_ntop(AF_INET6, &address.sin6_addr, text, TEXT) == NULL:
                return None
            name = (
                text.decode("ascii"),
                ntohs(address.sin6_port),
                ntohl(address.sin6_flowinfo),
                address.sin6_scope_id,
            )
        if ecn and self.marks is not None:
            name = self.marks[ecn - 1](name)
        known.size = size
        known.ecn = ecn
        memcpy(&known.address, address, size)
        self.names[place] = name
        return name

    # Sending

    def send(self, list datagrams not None, Py_ssize_t start = 0):
        """Hand ``datagrams`` from index ``start`` on to the kernel. Returns the index of the first
        that it did not take, with :attr:`error` saying why, or how many there are.

        The error is ``EINVAL`` also for an address that is not of the socket's family or not
        numeric."""
        cdef Py_ssize_t at = start, end = len(datagrams)
        cdef int count, sent, each
        if start < 0:
            raise IndexError("start must not be negative")
        self.error = 0
        self.singly = start
        while at < end:
            count = self.load(datagrams, at, end)
            if not count:
                self.error = EINVAL
                break
            sent = sendmmsg(self.fd, self.outgoing.heads, <unsigned int>count, MSG_DONTWAIT)
            if sent > 0:
                for each in range(sent):
                    self.bytes_sent += self.outgoing.heads[each].msg_len
                at = self.outgoing.first[sent] if sent < count else self.loaded
                continue
            if errno == EINTR:
                continue
            if self.outgoing.heads[0].msg_hdr.msg_iovlen > 1 and errno != EAGAIN:
                # Not as a train: each of its datagrams shall have an error of its own.
                if errno == EIO or errno == EINVAL or errno == ENOPROTOOPT or errno == EOPNOTSUPP:
                    self.cuts = False
                self.singly = at + <Py_ssize_t>self.outgoing.heads[0].msg_hdr.msg_iovlen
                continue
            if self.ect0 is not None and self.outgoing.heads[0].msg_hdr.msg_controllen and (
                errno == EINVAL or errno == EOPNOTSUPP or errno == ENOPROTOOPT
            ):
                self.ect0 = None  # the system does not mark
                continue
            self.error = errno
            break
        return at

    cdef int load(self, list datagrams, Py_ssize_t at, Py_ssize_t end) except -1:
        """Put datagrams into the slots, trains of equal ones to one address into one. Returns how
        many slots are taken; :attr:`loaded` is the index behind them."""
        cdef Outgoing *out = self.outgoing
        cdef msghdr *head
        cdef size_t size, step, total
        cdef Py_ssize_t pieces = 0
        cdef int slots = 0
        cdef bint marked = False
        cdef bytes to = None
        last = None
        if len(self.known) > RECEIVERS:
            self.known.clear()
        while at < end and slots < OUT_SLOTS and pieces < OUT_PIECES:
            data, address = datagrams[at]
            if to is None or address is not last:
                to = self.receiver(address)
                if to is None:
                    break
                last = address
                marked = self.ect0 is not None and type(address) is self.ect0
            head = &out.heads[slots].msg_hdr
            head.msg_name = PyBytes_AsString(to)
            head.msg_namelen = <socklen_t>PyBytes_Size(to)
            head.msg_iov = &out.pieces[pieces]
            head.msg_control = &out.control[slots]
            head.msg_controllen = 0
            if marked:
                self.mark(head)
            out.first[slots] = at
            step = total = self.add(data, pieces)
            head.msg_iovlen = 1
            pieces += 1
            at += 1
            slots += 1
            if not self.cuts or at <= self.singly:
                continue
            while at < end and pieces < OUT_PIECES and head.msg_iovlen < MOST_SEGMENTS:
                data, where = datagrams[at]
                if where is not address and (
                    type(where) is not type(address) or where != address
                ):
                    break
                size = self.add(data, pieces)
                if not 0 < size <= step or total + size > LONGEST_TRAIN:
                    break
                total += size
                head.msg_iovlen += 1
                pieces += 1
                at += 1
                if size < step:  # only the last of a train may be shorter
                    break
            if head.msg_iovlen > 1:
                self.cut(head, <uint16_t>step)
        self.loaded = at
        return slots

    cdef size_t add(self, data, Py_ssize_t piece) except? 0:
        """Point a piece at ``data``; its size."""
        cdef size_t size
        if not PyBytes_CheckExact(data):
            raise TypeError(f"a datagram is bytes, not {type(data).__name__}")
        size = <size_t>PyBytes_Size(data)
        self.outgoing.pieces[piece].iov_base = PyBytes_AsString(data)
        self.outgoing.pieces[piece].iov_len = size
        return size

    cdef void mark(self, msghdr *head) noexcept:
        """Have what is in a slot leave as ECT(0)."""
        cdef int value = 2
        cdef const sockaddr_in6 *to = <const sockaddr_in6 *>head.msg_name
        cdef cmsghdr *control = <cmsghdr *>head.msg_control
        head.msg_controllen = CMSG_SPACE(sizeof(int))
        if to.sin6_family == AF_INET6 and memcmp(&to.sin6_addr, MAPPED, sizeof(MAPPED)):
            control.cmsg_level = SOL_IPV6
            control.cmsg_type = IPV6_TCLASS
        else:
            control.cmsg_level = SOL_IP
            control.cmsg_type = IP_TOS
        control.cmsg_len = CMSG_LEN(sizeof(int))
        memcpy(CMSG_DATA(control), &value, sizeof(int))

    cdef void cut(self, msghdr *head, uint16_t step) noexcept:
        """Have the kernel cut what is in a slot into datagrams of ``step`` bytes."""
        cdef cmsghdr *control = <cmsghdr *>(<char *>head.msg_control + head.msg_controllen)
        head.msg_controllen += CMSG_SPACE(sizeof(uint16_t))
        control.cmsg_level = SOL_UDP
        control.cmsg_type = UDP_SEGMENT
        control.cmsg_len = CMSG_LEN(sizeof(uint16_t))
        memcpy(CMSG_DATA(control), &step, sizeof(uint16_t))

    cdef bytes receiver(self, address):
        """An address in the kernel's form; ``None`` where it is not numeric or of another
        family."""
        cdef sockaddr_in four
        cdef sockaddr_in6 six
        cdef bytes host, made
        found = self.known.get(address)
        if found is not None:
            return <bytes>found
        if not isinstance(address, tuple) or not 2 <= len(address) <= 4:
            return None
        name, port, *rest = address
        if type(name) is not str or type(port) is not int or not 0 <= port <= 65535:
            return None
        host = name.encode("utf-8", "replace")
        if self.family == AF_INET:
            memset(&four, 0, sizeof(four))
            four.sin_family = AF_INET
            four.sin_port = htons(<uint16_t>port)
            if rest or inet_pton(AF_INET, host, &four.sin_addr) != 1:
                return None
            made = PyBytes_FromStringAndSize(<char *>&four, sizeof(four))
        else:
            memset(&six, 0, sizeof(six))
            six.sin6_family = AF_INET6
            six.sin6_port = htons(<uint16_t>port)
            if rest:
                six.sin6_flowinfo = htonl(<uint32_t>rest[0])
            if len(rest) > 1:
                six.sin6_scope_id = <uint32_t>rest[1]
            if inet_pton(AF_INET6, host, &six.sin6_addr) != 1:
                return None
            made = PyBytes_FromStringAndSize(<char *>&six, sizeof(six))
        self.known[address] = made
        return made
