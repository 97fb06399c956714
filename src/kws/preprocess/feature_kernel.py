"""A compiled kernel that computes the features of many clips on the CPU.

It computes the features of `kws.preprocess.features.MelSpectrogram`, several times as fast.

PyTorch makes a pass over memory for each operation: window, FFT, squares, filters, logarithm, conversion. This kernel
takes sixteen frames at a time through all of them, in memory that fits the L1 cache. The frames lie side by side in
vectors, so that the FFT needs no shuffling. Importing this module compiles the kernel, which takes a second, so that
forked workers find it compiled.
"""

import functools
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from numba import njit, types

from kws.preprocess.features import mel_filters
from kws.preprocess.simd import LANES, fill_windowed, load, log, store, store_half, zero
from kws.recipe import FeatureConfig

_NO_FLOATS = np.empty(0, np.float32)
_NO_HALVES = np.empty(0, np.uint16)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Halves = npt.NDArray[np.uint16]


class _Plan(NamedTuple):
    """The tables and buffers for a `FeatureConfig`. A row is a vector of LANES frames."""

    hop: int
    before: int
    """Number of samples of the first frame that lie before the clip."""
    behind: int
    """Number of samples of the last frame that lie after the clip."""
    num_frames: int
    samples: Floats
    """The clip with reflected edges, and zeros for the frames that pad the last vector."""
    window: Floats
    """The Hann window, padded with zeros to a multiple of LANES."""
    spectrum: Floats
    """[n_fft / 2, re and im, LANES], or a little more."""
    radices: Ints
    """Radix of each stage of the FFT."""
    lengths: Ints
    """Length of the transforms that each stage decomposes."""
    twiddles: Ints
    """Where the twiddle factors of each stage begin in `cosines` and `sines`."""
    cosines: Floats
    sines: Floats
    order: Ints
    """[n_fft / 2], the row of each frequency in the output of the FFT."""
    half_cosines: Floats
    half_sines: Floats
    power: Floats
    """[bins, LANES]."""
    firsts: Ints
    """First bin of each mel filter."""
    ends: Ints
    """End of each mel filter, exclusive."""
    weights: Floats
    log: bool
    log_offset: np.float32
    valid: Floats
    """1 for a frame, 0 for padding of the last vector."""
    tail: Floats
    tail_halves: Halves
    sums: Floats
    squares: Floats
    """[num_mels, LANES]."""


class FeatureKernel:
    """Computes features.

    An instance must not be used by two threads at the same time. The result for a clip is bit for bit the same at every
    position in a batch.
    """

    BATCH = 8
    """Best number of clips per call; more would leave the cache before their turn."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self._plan = _make_plan(config)

    def __call__(
        self,
        waveforms: Floats,
        features: npt.NDArray[Any],
        counted: npt.NDArray[np.bool_] | None = None,
        sums: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Computes the features of some clips.

        Args:
            waveforms: float32 [clips, num_samples] in -1 to 1.
            features: array for the result, float16 or float32 [clips, num_mels, num_frames].
            counted: bool [clips], which clips to include in the sums; default: none.
            sums: float64 [2, num_mels], to which the features and their squares are added.
        """
        config, shape, half = self.config, features.shape, features.dtype == np.float16
        assert waveforms.shape == (len(features), config.num_samples)
        assert shape == (len(features), config.num_mels, config.num_frames)
        assert half or features.dtype == np.float32
        assert features.flags.c_contiguous
        flat = features.reshape(-1)
        halves, floats = (flat.view(np.uint16), _NO_FLOATS) if half else (_NO_HALVES, flat)
        counted = np.zeros(len(features), np.bool_) if counted is None else counted
        sums = np.zeros((2, config.num_mels)) if sums is None else sums
        _compute(waveforms, half, halves, floats, counted, sums, self._plan)


@functools.cache
def feature_kernel(config: FeatureConfig) -> FeatureKernel:
    """Returns the cached `FeatureKernel` of this process, as making one takes as long as a hundred clips."""
    return FeatureKernel(config)


def _make_plan(config: FeatureConfig) -> _Plan:
    half = config.n_fft // 2
    radices, lengths, length = [], [], half
    while length > 1:
        radix = 4 if length % 4 == 0 else next(n for n in range(2, length + 1) if length % n == 0)
        radices.append(radix)
        lengths.append(length)
        length //= radix
    order = np.zeros(1, np.int64)
    for radix in reversed(radices):
        order = np.concatenate([order * radix + first for first in range(radix)])
    angles = [_twiddles(radix, length) for radix, length in zip(radices, lengths, strict=True)]
    all_angles = np.concatenate([np.zeros(0), *angles])
    half_angles = -2 * np.pi / config.n_fft * np.arange(half // 2 + 1)

    num_frames = config.num_frames
    padded_frames = _round_up(num_frames)
    padded_window = np.zeros(_round_up(config.win_length))
    angle = 2 * np.pi / config.win_length
    padded_window[: config.win_length] = 0.5 - 0.5 * np.cos(angle * np.arange(config.win_length))
    last = (padded_frames - 1) * config.hop_length
    before = half - (config.n_fft - config.win_length) // 2
    filters = mel_filters(config)
    used = [np.flatnonzero(of) for of in filters.T]
    spans = [(int(bins[0]), int(bins[-1]) + 1) if bins.size else (0, 0) for bins in used]

    def floats(values: npt.ArrayLike) -> Floats:
        return np.ascontiguousarray(values, np.float32)

    def ints(values: npt.ArrayLike) -> Ints:
        return np.ascontiguousarray(values, np.int64)

    return _Plan(
        hop=config.hop_length,
        before=before,
        behind=config.win_length - before,
        num_frames=num_frames,
        samples=_aligned(max(last + padded_window.size, config.num_samples + config.win_length)),
        window=floats(padded_window),
        spectrum=_aligned(max(2 * half, padded_window.size) * LANES),
        radices=ints(radices),
        lengths=ints(lengths),
        twiddles=ints(np.cumsum([0, *(len(some) for some in angles)])),
        cosines=floats(np.cos(all_angles)),
        sines=floats(np.sin(all_angles)),
        order=ints(np.argsort(order)),
        half_cosines=floats(np.cos(half_angles)),
        half_sines=floats(np.sin(half_angles)),
        power=_aligned((half + 1) * LANES),
        firsts=ints([first for first, _ in spans]),
        ends=ints([end for _, end in spans]),
        weights=floats(np.concatenate([filters[first:end, mel] for mel, (first, end) in enumerate(spans)])),
        log=config.log,
        log_offset=np.float32(config.log_offset),
        valid=floats(np.arange(padded_frames) < num_frames),
        tail=_aligned(2 * max([1, *radices]) * LANES),
        tail_halves=np.zeros(LANES, np.uint16),
        sums=_aligned(config.num_mels * LANES),
        squares=_aligned(config.num_mels * LANES),
    )


def _round_up(number: int) -> int:
    return -(-number // LANES) * LANES


def _aligned(size: int) -> Floats:
    """Returns zeros aligned to 64 bytes, so that each vector of sixteen floats lies in one cache line."""
    memory = np.zeros(size + LANES, np.float32)
    first = -memory.ctypes.data % 64 // 4
    return memory[first : first + size]


def _twiddles(radix: int, length: int) -> npt.NDArray[np.float64]:
    """Returns the angles of the twiddle factors of a stage, for each place.

    For radix 4 these are three per place; for other radices, the whole DFT matrix multiplied by the factors.
    """
    places, outputs = np.arange(length // radix), np.arange(radix)
    if radix == 4:
        angles = np.outer(places, outputs[1:])
    else:
        angles = places[:, None, None] * outputs[:, None] + np.outer(outputs, outputs) * (length // radix)
    return -2 * np.pi / length * (angles % length).ravel().astype(np.float64)


@njit
def _fill_samples(waveform: Floats, before: int, behind: int, samples: Floats) -> None:
    """Copies a clip to `samples`, with reflected edges."""
    whole = waveform.size // LANES * LANES
    for sample in range(0, whole, LANES):
        store(samples, before + sample, load(waveform, sample))
    for sample in range(whole, waveform.size):
        samples[before + sample] = waveform[sample]
    for sample in range(before):
        samples[sample] = waveform[before - sample]
    for sample in range(behind):
        samples[before + waveform.size + sample] = waveform[waveform.size - 2 - sample]


@njit
def _fill_window(frame: int, hop: int, samples: Floats, window: Floats, spectrum: Floats) -> None:
    """Writes windowed samples as complex numbers: even samples are the real, odd ones the imaginary parts.

    Zeros follow the window instead of surrounding it, which only changes phases.
    """
    for sample in range(0, window.size, LANES):
        fill_windowed(samples, frame * hop, hop, window, sample, spectrum)
    for index in range(window.size * LANES, spectrum.size):
        spectrum[index] = 0


@njit
def _transform_by_four(size: int, length: int, cosines: Floats, sines: Floats, spectrum: Floats) -> None:
    """Computes a radix-4 stage of the FFT in place: splits each transform into four of a quarter of its length."""
    end, step = 2 * size * LANES, length // 4 * 2 * LANES
    for place in range(length // 4):
        c1, c2, c3 = cosines[3 * place], cosines[3 * place + 1], cosines[3 * place + 2]
        s1, s2, s3 = sines[3 * place], sines[3 * place + 1], sines[3 * place + 2]
        for first in range(place * 2 * LANES, end, 4 * step):
            second, third, fourth = first + step, first + 2 * step, first + 3 * step
            a_re, a_im = load(spectrum, first), load(spectrum, first + LANES)
            b_re, b_im = load(spectrum, second), load(spectrum, second + LANES)
            c_re, c_im = load(spectrum, third), load(spectrum, third + LANES)
            d_re, d_im = load(spectrum, fourth), load(spectrum, fourth + LANES)
            even_re, even_im, odd_re, odd_im = a_re + c_re, a_im + c_im, b_re + d_re, b_im + d_im
            store(spectrum, first, even_re + odd_re)
            store(spectrum, first + LANES, even_im + odd_im)
            re, im = even_re - odd_re, even_im - odd_im
            store(spectrum, third, re * c2 - im * s2)
            store(spectrum, third + LANES, re * s2 + im * c2)
            even_re, even_im, odd_re, odd_im = a_re - c_re, a_im - c_im, b_im - d_im, d_re - b_re
            re, im = even_re + odd_re, even_im + odd_im
            store(spectrum, second, re * c1 - im * s1)
            store(spectrum, second + LANES, re * s1 + im * c1)
            re, im = even_re - odd_re, even_im - odd_im
            store(spectrum, fourth, re * c3 - im * s3)
            store(spectrum, fourth + LANES, re * s3 + im * c3)


@njit
def _transform_by_any(
    size: int, radix: int, length: int, cosines: Floats, sines: Floats, inputs: Floats, spectrum: Floats
) -> None:
    """Computes a stage of the FFT with a radix other than four, as a plain DFT of that size."""
    end, step = 2 * size * LANES, length // radix * 2 * LANES
    for place in range(length // radix):
        for first in range(place * 2 * LANES, end, radix * step):
            for number in range(radix):
                store(inputs, 2 * number * LANES, load(spectrum, first + number * step))
                store(inputs, (2 * number + 1) * LANES, load(spectrum, first + number * step + LANES))
            for output in range(radix):
                re, im = zero(), zero()
                for number in range(radix):
                    factor = (place * radix + output) * radix + number
                    a_re, a_im = load(inputs, 2 * number * LANES), load(inputs, (2 * number + 1) * LANES)
                    re = re + a_re * cosines[factor] - a_im * sines[factor]
                    im = im + a_re * sines[factor] + a_im * cosines[factor]
                store(spectrum, first + output * step, re)
                store(spectrum, first + output * step + LANES, im)


@njit
def _fill_power(order: Ints, cosines: Floats, sines: Floats, spectrum: Floats, power: Floats) -> None:
    """Computes the power of all bins from the FFT of (even samples) + i · (odd samples)."""
    half = order.size
    re, im = load(spectrum, 0), load(spectrum, LANES)
    first, last = re + im, re - im
    store(power, 0, first * first)
    store(power, half * LANES, last * last)
    for number in range(1, half // 2 + 1):
        here, there = 2 * order[number] * LANES, 2 * order[half - number] * LANES
        a_re, a_im = load(spectrum, here), load(spectrum, here + LANES)
        b_re, b_im = load(spectrum, there), load(spectrum, there + LANES)
        c, s, scale = cosines[number], sines[number], np.float32(0.5)
        even_re, even_im, odd_re, odd_im = (a_re + b_re) * scale, (a_im - b_im) * scale, a_im + b_im, b_re - a_re
        odd_re, odd_im = (odd_re * c - odd_im * s) * scale, (odd_re * s + odd_im * c) * scale
        re, im = even_re + odd_re, even_im + odd_im
        store(power, number * LANES, re * re + im * im)
        re, im = even_re - odd_re, even_im - odd_im
        store(power, (half - number) * LANES, re * re + im * im)


@njit
def _fill_features(
    power: Floats,
    firsts: Ints,
    ends: Ints,
    weights: Floats,
    with_log: bool,
    log_offset: np.float32,
    frame: int,
    num_frames: int,
    half: bool,
    halves: Halves,
    floats: Floats,
    start: int,
    tail: Floats,
    tail_halves: Halves,
    counted: bool,
    valid: Floats,
    sums: Floats,
    squares: Floats,
) -> None:
    """Applies mel filters and logarithm to LANES frames from `frame` on, writes them from `start` on, and adds sums."""
    num_valid = min(num_frames - frame, LANES)
    weight = 0
    for mel in range(firsts.size):
        value = zero()
        for bin in range(firsts[mel], ends[mel]):
            value = value + load(power, bin * LANES) * weights[weight]
            weight += 1
        if with_log:
            value = log(value + log_offset)
        at = start + mel * num_frames + frame
        if num_valid == LANES:
            if half:
                store_half(halves, at, value)
            else:
                store(floats, at, value)
        elif half:
            store_half(tail_halves, 0, value)
            for lane in range(num_valid):
                halves[at + lane] = tail_halves[lane]
        else:
            store(tail, 0, value)
            for lane in range(num_valid):
                floats[at + lane] = tail[lane]
        if counted:
            value = value * load(valid, frame)
            store(sums, mel * LANES, load(sums, mel * LANES) + value)
            store(squares, mel * LANES, load(squares, mel * LANES) + value * value)


_SIGNATURE = types.void(
    types.float32[:, ::1],
    types.boolean,
    types.uint16[::1],
    types.float32[::1],
    types.boolean[::1],
    types.float64[:, ::1],
    numba.typeof(_make_plan(FeatureConfig())),
)


@njit(_SIGNATURE)
def _compute(
    waveforms: Floats,
    half: bool,
    halves: Halves,
    floats: Floats,
    counted: npt.NDArray[np.bool_],
    sums: npt.NDArray[np.float64],
    plan: _Plan,
) -> None:
    for lane in range(plan.sums.size):
        plan.sums[lane] = 0
        plan.squares[lane] = 0
    for clip in range(len(waveforms)):
        _fill_samples(waveforms[clip], plan.before, plan.behind, plan.samples)
        for frame in range(0, plan.num_frames, LANES):
            _fill_window(frame, plan.hop, plan.samples, plan.window, plan.spectrum)
            for stage in range(plan.radices.size):
                radix, length, first = plan.radices[stage], plan.lengths[stage], plan.twiddles[stage]
                cosines, sines = plan.cosines[first:], plan.sines[first:]
                if radix == 4:
                    _transform_by_four(plan.order.size, length, cosines, sines, plan.spectrum)
                else:
                    _transform_by_any(plan.order.size, radix, length, cosines, sines, plan.tail, plan.spectrum)
            _fill_power(plan.order, plan.half_cosines, plan.half_sines, plan.spectrum, plan.power)
            start = clip * plan.firsts.size * plan.num_frames
            _fill_features(
                plan.power,
                plan.firsts,
                plan.ends,
                plan.weights,
                plan.log,
                plan.log_offset,
                frame,
                plan.num_frames,
                half,
                halves,
                floats,
                start,
                plan.tail,
                plan.tail_halves,
                counted[clip],
                plan.valid,
                plan.sums,
                plan.squares,
            )
    for mel in range(plan.firsts.size):
        for lane in range(mel * LANES, (mel + 1) * LANES):
            sums[0, mel] += plan.sums[lane]
            sums[1, mel] += plan.squares[lane]
