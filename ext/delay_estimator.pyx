# cython: auto_pickle=False, autotestdict=False
"""Where to put the playout point, so that a wanted share of the packets comes too late.

The estimator sees when each packet was sent and when it came, on two clocks that need not agree,
and answers with a *target*: what to add to a send time to have the moment of its playout.
O(1) per packet, no allocation. The C is in ``echostream/_ext/delay.pxd``, because the jitter ring
embeds it; this module gives it to Python. What it does, in the order of a packet's way:

1. **Base line.** The smallest delay of each second of the last minute, and below these points the
   highest line of one slope that passes under all of them. The slope is the clock skew: least
   squares through the points, used only where it moves the line by more than twice the scatter
   of the points, else noise would tilt it; until then what a clock filter knows (``know``). (The
   edge of their lower hull, as Moon, Skelly and Towsley have it, 1999, varies several times as
   much.) Where the line is tilted anew, the packets of the last 20 s are counted again from it.
2. **A change of the path is not jitter.** A packet far below the line is a shorter path and is
   believed at once. When the last 8 packets are all higher than the line ever was in the last
   minute, and did not come as one burst, the path may be longer: the target follows them at
   once, and after 4 s without a packet near the old line the line moves up, and what was counted
   in between with it.
3. **Distribution** of the height above the line: 256 logarithmic buckets from 20 us to 10 s
   (5 % wide, interpolated), with a memory that grows to 10,000 packets. Decay costs nothing: the
   increment grows instead. A cursor holds the wanted quantile. Short memories were measured and
   lose: they forget rare stalls between two of them, and rise after each.
   At the start nothing is known of rare packets: the target comes down from (a share of) the
   start delay no faster than the playout may follow.
4. **A freeze is one event.** What a gap of a second or more held back is released in one burst;
   of it only the first packet is counted.
5. **Calibration.** The share that was really late is kept against the share that was asked for,
   and the quantile moves to make up for it over 6,000 packets.
"""

cimport cython
from libc.math cimport NAN
from libc.stdint cimport int64_t

from echostream._ext.delay cimport (
    Control, Delay, control_step, control_watch, delay_base, delay_know, delay_restart, delay_target, delay_update,
    delay_wanted,
)


@cython.final
cdef class DelayEstimator:
    """The estimator by itself. All times are integer nanoseconds.

    ``late``: wanted share of late packets, above 0 and below 1. ``start_ns``: delay until the
    first packets are known; from ``start_share`` of it the delay comes down in ``settle_s``.
    ``minimum_ns`` and ``maximum_ns`` bound the delay above the base line.
    """

    cdef Delay state

    def __cinit__(self):
        self.state.known = NAN

    def __init__(
        self,
        double late,
        double start_ns,
        double minimum_ns=0.0,
        double maximum_ns=10e9,
        double start_share=0.5,
        double settle_s=2.0,
    ):
        if not 0.0 < late < 1.0:
            raise ValueError(f"late is a share between 0 and 1, not {late}")
        if not 0.0 <= minimum_ns <= maximum_ns:
            raise ValueError(f"minimum_ns ({minimum_ns}) must be from 0 to maximum_ns")
        if not (0.0 <= start_share <= 1.0 and 0.0 < settle_s):
            raise ValueError("start_share is from 0 to 1, settle_s above 0")
        self.state.late = late
        self.state.start = start_ns
        self.state.minimum = minimum_ns
        self.state.maximum = maximum_ns
        self.state.start_share = start_share
        self.state.settle = settle_s * 1e9
        delay_restart(&self.state)

    def update(self, int64_t send_ns, int64_t arrival_ns, bint missed=False):
        """One packet arrived; ``missed`` when the moment of its playout had passed."""
        delay_update(&self.state, send_ns, arrival_ns, missed)

    def target_ns(self, int64_t send_ns):
        """What to add to this send time to have the moment of its playout."""
        return delay_target(&self.state, send_ns)

    def base_ns(self, int64_t send_ns):
        """The base line: smallest difference of arrival and send time, as of this send time."""
        return self.state.origin_delay + <int64_t>delay_base(
            &self.state, <double>(send_ns - self.state.origin_send)
        )

    def restart(self):
        """Forget everything but the configuration."""
        delay_restart(&self.state)

    def know(self, double skew_ppm):
        """The skew as somebody measured it, until the packets plainly say another; NaN: nobody."""
        delay_know(&self.state, skew_ppm * 1e-6)

    @property
    def wanted_ns(self):
        """Playout delay above the base line."""
        return delay_wanted(&self.state)

    @property
    def packets(self):
        """Packets seen."""
        return self.state.packets

    @property
    def skew_ppm(self):
        """Slope of the base line in parts per million; 0 while none is believed."""
        return self.state.slope * 1e6


@cython.final
cdef class PlayoutControl:
    """Moves a playout point towards its target, no faster than its rates (seconds per second)."""

    cdef Control state

    def __init__(self, double raise_rate, double lower_rate):
        if not (0.0 < raise_rate < 1.0 and 0.0 < lower_rate < 1.0):
            raise ValueError("rates are seconds per second, between 0 and 1")
        self.state.raise_rate = raise_rate
        self.state.lower_rate = lower_rate

    def watch(self, double error_ns, double span_ns, double wanted_ns):
        """Decide once for each ``span_ns`` whether to fall; see ``control_watch``."""
        control_watch(&self.state, error_ns, span_ns, wanted_ns)

    def step(self, double error_ns, double span_ns, double grain_ns=1.0):
        """How much later (positive) or earlier to play what comes next; see ``control_step``."""
        return control_step(&self.state, error_ns, span_ns, grain_ns)

    @property
    def falling(self):
        """Whether the playout point is on its way to an earlier target."""
        return self.state.falling
