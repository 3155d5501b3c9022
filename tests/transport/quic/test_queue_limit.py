"""The bound on the window that keeps queues short gives back no more than it took."""

from types import SimpleNamespace

from echostream.transport.quic.queue_limit import BASE_AGE_S, QueueLimit


def path(window: int) -> SimpleNamespace:
    """Recovery on a path whose shortest round trip of 40 ms was seen once."""
    control = SimpleNamespace(
        congestion_window=window,
        bytes_in_flight=window,
        ssthresh=window,
        _max_datagram_size=1200,
    )
    return SimpleNamespace(
        _cc=control, _rtt_initialized=True, _rtt_latest=0.04, _rtt_smoothed=0.042
    )


def measured_anew(loss: SimpleNamespace, meanwhile: object = None) -> None:
    """Go on until the shortest round trip was measured again."""
    limit = QueueLimit(0.05)
    now, at, probed = 0.0, BASE_AGE_S + 1.0, False
    limit.apply(now, loss, 0)
    loss._rtt_latest = 0.042
    while now < at:
        now += 0.1
        limit.apply(now, loss, 0)
        if limit._probing:
            if not probed and callable(meanwhile):
                meanwhile()
            probed = True
        elif probed:
            return
    raise AssertionError("it was not measured anew")


def test_the_window_is_what_the_controller_had() -> None:
    loss = path(100_000)
    measured_anew(loss)
    assert loss._cc.congestion_window == 100_000


def test_a_loss_meanwhile_stands() -> None:
    loss = path(100_000)

    def lose() -> None:
        loss._cc.congestion_window = loss._cc.ssthresh = 25_000

    measured_anew(loss, lose)
    assert loss._cc.congestion_window == 25_000
