"""Audio files as phones and browsers record them."""

from pathlib import Path

import av
import numpy as np

OF_PHONES = {  # suffix: container, codec, rate
    "m4a": ("ipod", "aac", 44_100),
    "mp4": ("mp4", "aac", 16_000),
    "aac": ("adts", "aac", 16_000),
    "3gp": ("3gp", "libopencore_amrnb", 8000),
    "amr": ("amr", "libopencore_amrnb", 8000),
    "webm": ("webm", "libopus", 48_000),
    "mka": ("matroska", "flac", 16_000),
    "wma": ("asf", "wmav2", 44_100),
    "opus": ("ogg", "libopus", 48_000),
}


def encode(path: Path, samples: np.ndarray, suffix: str, channels: int = 1) -> Path:
    """Writes a file as phones and browsers do."""
    container, codec, rate = OF_PHONES[suffix]
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="stereo" if channels == 2 else "mono")
        stream.bit_rate = 12_200 if "amr" in codec else 64_000
        resampler = av.AudioResampler(format=stream.format, layout=stream.layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.stack([samples] * channels), "fltp", stream.layout.name)
        frame.sample_rate = 16_000
        fifo = av.AudioFifo()
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            piece.pts = None
            fifo.write(piece)
        while (some := fifo.read(stream.frame_size or 1024, partial=True)) is not None:
            for packet in stream.encode(some):
                output.mux(packet)
        for packet in stream.encode(None):
            output.mux(packet)
    return path
