"""Speed-up, efficiency and serial fraction from measured times, with confidence intervals; and a prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of a monotonic function of the estimate."""
        ends = sorted((function(self.low), function(self.high)))
        return Interval(function(self.value), *ends)


def shown(interval: Interval, decimals: int = 2) -> str:
    """An estimate with its interval, as text."""
    value, low, high = (f"{each:.{decimals}f}" for each in (interval.value, interval.low, interval.high))
    return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class SpeedUp:
    """What a number of devices brings over one.

    time_s: median time of a unit of work. serial_fraction: of Karp and Flatt; None for one device.
    """

    devices: int
    time_s: float
    speed_up: Interval
    efficiency: Interval
    serial_fraction: Interval | None


def ratio(numerator: Sequence[float], denominator: Sequence[float], seed: int = 0) -> Interval:
    """Ratio of two medians. The bootstrap resamples whole rounds, so that what a round has in common stays together.

    Args: numerator, denominator: (rounds,) times of the same rounds, in order.
    """
    pairs = np.array([numerator, denominator], dtype=np.float64)
    rounds = pairs.shape[1]
    drawn = np.random.default_rng(seed).integers(rounds, size=(RESAMPLES, rounds))
    above, below = np.median(pairs[:, drawn], axis=2)
    low, high = np.quantile(above / below, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(np.median(pairs[0]) / np.median(pairs[1])), float(low), float(high))


def speed_ups(times: Mapping[int, Sequence[float]], weak: bool = False) -> list[SpeedUp]:
    """Rows by number of devices.

    Strong scaling splits a fixed amount of work: S = T_1 / T_N. Weak scaling gives each device as much as one had
    alone: S = N T_1 / T_N. Efficiency is S / N.

    Args: times: (rounds,) seconds of a unit of work by number of devices, of which 1 is one.
    """
    rows = []
    for devices, own in sorted(times.items()):
        scale = devices if weak else 1
        gain = ratio(times[1], own).map(lambda value, scale=scale: scale * value)
        fraction = None
        if devices > 1:
            fraction = gain.map(lambda value, devices=devices: karp_flatt(value, devices))
        efficiency = gain.map(lambda value, devices=devices: value / devices)
        rows.append(SpeedUp(devices, float(np.median(own)), gain, efficiency, fraction))
    return rows


def karp_flatt(speed_up: float, devices: int) -> float:
    """The experimentally determined serial fraction, e = (1/S - 1/N) / (1 - 1/N).

    Karp and Flatt, Measuring parallel processor performance, Communications of the ACM 33(5), 1990. Negative where the
    speed-up is more than the number of devices.
    """
    return (1 / speed_up - 1 / devices) / (1 - 1 / devices)


def ring_all_reduce_s(num_bytes: float, devices: int, bytes_per_s: float) -> float:
    """Seconds of an all-reduce over a ring: each link carries 2 (N - 1) / N of the message.

    Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, JPDC 69(2), 2009. Latency is left out.
    """
    return 2 * (devices - 1) / devices * num_bytes / bytes_per_s


@dataclass(frozen=True)
class StepModel:
    """Time of a step as a line in the samples of a device, plus an all-reduce that nothing overlaps.

    fixed_s: what a step takes however small its batch is. sample_s: more for each sample of a device. message_bytes: of
    the gradients. bytes_per_s: of a link.
    """

    fixed_s: float
    sample_s: float
    message_bytes: float
    bytes_per_s: float

    @classmethod
    def fitted(
        cls, full: tuple[int, float], half: tuple[int, float], message_bytes: float, bytes_per_s: float
    ) -> StepModel:
        """Through two measured points on one device, each (samples, seconds)."""
        sample_s = max(0.0, (full[1] - half[1]) / (full[0] - half[0]))
        return cls(max(0.0, full[1] - sample_s * full[0]), sample_s, message_bytes, bytes_per_s)

    def step_s(self, samples_per_device: float, devices: int) -> float:
        """Predicted seconds of a step."""
        alone = self.fixed_s + self.sample_s * samples_per_device
        return alone + ring_all_reduce_s(self.message_bytes, devices, self.bytes_per_s)

    def efficiency(self, global_size: int, devices: int, weak: bool = False) -> float:
        """Predicted efficiency. Args: global_size: samples of a step on one device."""
        alone = self.step_s(global_size, 1)
        if weak:
            return alone / self.step_s(global_size, devices)
        return alone / self.step_s(global_size / devices, devices) / devices
