"""One server, four players: each a process of its own, all play the same sample at the same moment.

    python examples/multiroom.py [MUSIC.wav]

Every player writes what it plays into a WAV file, by a "sound card" whose crystal is up to 40 ppm
off: in an hour it would be 0.14 s ahead of the others. At the end the recordings are compared by
cross-correlation: how far apart were any two of them, at any time? The players' own view of that is
beside it: their clock's error bound, which no error may pass.
"""

import asyncio
import itertools
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

from echostream import AudioFormat, Identity, RpcClient, RpcServer, Session, run
from echostream.contrib.group import Group
from echostream.contrib.group_player import GroupPlayer

CARDS_PPM = (-40.0, -15.0, 10.0, 40.0)  # how fast the players' sound cards are
BLOCK = 480
SECONDS = 4.0
SECOND = 1_000_000_000


# A player: python multiroom.py --player PORT FINGERPRINT PPM FILE.wav


async def player(port: str, fingerprint: str, ppm: str, path: str) -> None:
    finished = asyncio.Event()

    async def play(playout):
        # A sound card asks for a block whenever its own crystal says so, and tells when that block
        # will be heard. This one writes to a file.
        rate, channels = playout.format.sample_rate, playout.format.channels
        period_ns = SECOND / rate / (1 + float(ppm) * 1e-6)
        begin, count, bound = time.monotonic_ns(), 0, 0.0
        out = np.empty((BLOCK, channels), np.int16)
        with wave.open(path, "wb") as file:
            file.setparams((channels, 2, rate, 0, "NONE", ""))
            while True:
                heard_ns = begin + round(count * period_ns)
                await asyncio.sleep((heard_ns - time.monotonic_ns()) / SECOND)
                if playout.pull_into(out, heard_ns) < BLOCK:
                    break
                file.writeframes(out.tobytes())
                count += BLOCK
                if playout.statistics().playing:
                    bound = max(bound, playout.statistics().error_bound_ns)
        seen = playout.statistics()
        print(begin, period_ns, bound, seen.drift_ppm, seen.late, flush=True)
        finished.set()

    builder = RpcClient.builder().connect(("127.0.0.1", int(port))).trust(fingerprint=fingerprint)
    async with builder.plugin(GroupPlayer("music", play)).build():
        await finished.wait()


# The server.


async def main(source: str | None) -> None:
    samples, rate = read_wav(source) if source else (made_up(), 48_000)
    arrivals: asyncio.Queue[Session] = asyncio.Queue()
    server = (
        RpcServer.builder()
        .bind("127.0.0.1:0")
        .identity(Identity.ephemeral())
        .on_connect(arrivals.put)
        .build()
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"player{number}.wav")) for number in range(len(CARDS_PPM))]
        async with server:
            processes = [
                await asyncio.create_subprocess_exec(
                    *(sys.executable, __file__, "--player", str(server.address[1])),
                    *(server.fingerprint, str(ppm), path),
                    stdout=asyncio.subprocess.PIPE,
                )
                for ppm, path in zip(CARDS_PPM, paths, strict=True)
            ]
            format = AudioFormat(rate, samples.shape[1], sample_type="int16")
            async with Group("music", format) as group:
                for _ in CARDS_PPM:
                    await group.add(await arrivals.get())
                await group.start()
                print(f"server: {len(group.members)} players, {group.delay * 1e3:.0f} ms of delay")
                for first in range(0, len(samples), BLOCK):
                    await group.send(samples[first : first + BLOCK])  # waits for its time
            reports = [(await process.communicate())[0].split() for process in processes]
        report(paths, [tuple(map(float, words)) for words in reports], rate)


def report(paths, reports, rate) -> None:
    """Compare the recordings, each against each."""
    cards, bounds = [], []
    for number, (path, (begin, period_ns, bound, drift, late)) in enumerate(
        zip(paths, reports, strict=True)
    ):
        cards.append((read_wav(path)[0][:, 0].astype(float), begin, period_ns))
        bounds.append(bound)
        print(
            f"player {number}: its card is {-drift:+.0f} ppm off, {late:.0f} packets late, "
            f"error bound {bound / 1e3:.0f} µs"
        )
    start = max(begin for _, begin, _ in cards)
    stop = min(begin + len(wav) * period for wav, begin, period in cards)
    apart, within = [], True
    for at in np.arange(start + 0.4 * SECOND, stop - 0.5 * SECOND, 0.1 * SECOND):
        pieces = [piece(card, at, rate) for card in cards]
        if min(np.abs(p).max() for p in pieces) < 100:
            continue  # silence says nothing
        for one, other in itertools.combinations(range(len(cards)), 2):
            error = abs(shift(pieces[one], pieces[other]) / rate * 1e6)
            apart.append(error)
            within &= error <= (bounds[one] + bounds[other]) / 1e3
    p50, p99 = np.quantile(apart, (0.5, 0.99))
    print(
        f"apart, of {len(apart)} comparisons of two recordings: median {p50:.1f} µs, "
        f"p99 {p99:.1f} µs, most {max(apart):.1f} µs"
    )
    print("all within the error bounds" if within else "some beyond the error bounds")


def piece(card, at, rate):
    """A quarter of a second as it was heard from true time ``at`` on."""
    samples, begin, period = card
    times = at + np.arange(rate // 4) * SECOND / rate
    return np.interp((times - begin) / period, np.arange(len(samples)), samples)


def shift(one, other) -> float:
    """By how many samples ``other`` is behind ``one``: where the cross-correlation is largest."""
    size = 2 * len(one)
    product = np.fft.rfft(other, size) * np.conj(np.fft.rfft(one, size))
    correlation = np.fft.irfft(product, size)
    peak = int(correlation.argmax())
    before, top, after = correlation[[peak - 1, peak, (peak + 1) % size]]
    place = peak + 0.5 * (before - after) / (before - 2 * top + after)
    return place if place < size / 2 else place - size


def made_up():
    """Some notes with a touch of noise, so that no two moments are alike."""
    time_s = np.arange(int(SECONDS * 48_000)) / 48_000
    noise = np.random.default_rng(1).normal(0, 1, len(time_s))
    noise = np.convolve(noise, np.hanning(16) / 8, "same")  # below 6 kHz or so
    notes = 220 * 2 ** (np.array([0, 4, 7, 12, 7, 4]) / 12)
    melody = np.sin(2 * np.pi * np.cumsum(notes[(time_s * 4).astype(int) % len(notes)]) / 48_000)
    return ((0.3 * melody + 0.1 * noise).clip(-1, 1) * 32767).astype(np.int16)[:, None]


def read_wav(path):
    try:
        with wave.open(path) as file:
            if file.getsampwidth() != 2:
                sys.exit(f"{path}: give a WAV with 16-bit samples")
            data = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            return data.reshape(-1, file.getnchannels()), file.getframerate()
    except (OSError, EOFError, wave.Error) as error:
        sys.exit(f"{path}: {error}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--player"]:
        run(player(*sys.argv[2:]))
    else:
        run(main(sys.argv[1] if len(sys.argv) > 1 else None))
