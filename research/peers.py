"""KWT-1 and BC-ResNet-3 beside the default preset, on the same clips and for the same time.

Both networks are written here from their papers, and trained as their papers and published listings say; they exist
for this comparison only. Three things differ from the sources. The schedule is stretched over the time that there is.
Augmentation is that of `kws.train.augment`, with the published sizes: it masks mel bins where KWT masks cepstral
coefficients, and adds noise at a ratio to the clip (0 to 30 dB) where both add it at a fixed volume. Products are in
bfloat16 where the processor multiplies it, as the default's are.

Time is processor time per thread, without validation, so that other work on the machine favours nobody.

  python -m research.peers --source ARCHIVE --seconds 1290 --jobs 2
"""

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kws import files
from kws.command import as_command
from kws.preprocess.tensors import Split, Tensors
from kws.recipe import NO_AUGMENTATION, AugmentConfig, FeatureConfig, Recipe
from kws.train.augment import Augment
from kws.train.update import wants_bf16
from research import study


class KeywordTransformer(nn.Module):
    """KWT-1 (Berg et al., Interspeech 2021, arXiv 2104.00769): a post-norm Transformer over single frames of MFCC."""

    def __init__(self, features: FeatureConfig, num_words: int, width: int = 64, num_layers: int = 12) -> None:
        super().__init__()
        cepstrum = torch.arange(40)[:, None] * (torch.arange(features.num_mels) + 0.5) * (math.pi / features.num_mels)
        self.register_buffer("dct", cepstrum.cos() * math.sqrt(2 / features.num_mels))
        self.embed = nn.Linear(40, width)
        self.word = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.randn(features.num_frames + 1, width) * 0.02)
        self.blocks = nn.Sequential(
            *(nn.TransformerEncoderLayer(width, 1, 4 * width, 0.0, "gelu", batch_first=True) for _ in range(num_layers))
        )
        self.head = nn.Linear(width, num_words)

    dct: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Scores log-mel features [clips, num_mels, num_frames]: [clips, words]."""
        tokens = self.embed((self.dct @ x).mT)
        tokens = torch.cat([self.word.expand(len(x), 1, -1).to(tokens.dtype), tokens], dim=1) + self.positions
        scores: Tensor = self.head(self.blocks(tokens)[:, 0])
        return scores


class SubSpectralNorm(nn.Module):
    """Batch normalization of each of five bands of the mel axis by itself (arXiv 2103.13620)."""

    BANDS = 5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels * self.BANDS)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [clips, channels, bins, frames] to the same shape."""
        clips, channels, bins, frames = x.shape
        banded: Tensor = self.norm(x.reshape(clips, channels * self.BANDS, bins // self.BANDS, frames))
        return banded.reshape(x.shape)


class BroadcastedBlock(nn.Module):
    """Over the mel axis in two dimensions, then over time in one; the latter is broadcast to all mel bins and added."""

    def __init__(self, inputs: int, channels: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.widen = (
            nn.Identity()
            if inputs == channels
            else nn.Sequential(nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        )
        self.has_shortcut = inputs == channels
        self.over_bins = nn.Sequential(
            nn.Conv2d(channels, channels, (3, 1), (stride, 1), (1, 0), groups=channels, bias=False),
            SubSpectralNorm(channels),
        )
        self.over_time = nn.Sequential(
            nn.Conv2d(channels, channels, (1, 3), 1, (0, dilation), (1, dilation), channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.Dropout2d(0.1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [clips, inputs, bins, frames] to [clips, channels, bins / stride, frames]."""
        y = self.over_bins(self.widen(x))
        y = y + self.over_time(y.mean(dim=2, keepdim=True))
        return F.relu(y + x if self.has_shortcut else y)


class BCResNet(nn.Module):
    """BC-ResNet (Kim et al., Interspeech 2021, arXiv 2106.04140); `scale` is the τ of its name."""

    STAGES = ((8, 2, 1), (12, 2, 2), (16, 4, 2), (20, 4, 1))
    """Channels of scale 1, blocks, and stride over the mel axis; the dilation over time doubles from stage to stage."""

    def __init__(self, features: FeatureConfig, num_words: int, scale: int = 3) -> None:
        super().__init__()
        last = 16 * scale
        layers: list[nn.Module] = [nn.Conv2d(1, last, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(last), nn.ReLU()]
        for number, (channels, num_blocks, stride) in enumerate(self.STAGES):
            for block in range(num_blocks):
                layers.append(BroadcastedBlock(last, channels * scale, 1 if block else stride, 2**number))
                last = channels * scale
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Conv2d(last, last, 5, padding=(0, 2), groups=last, bias=False),
            nn.Conv2d(last, 32 * scale, 1, bias=False),
            nn.BatchNorm2d(32 * scale),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(32 * scale, num_words, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores log-mel features [clips, num_mels, num_frames]: [clips, words]."""
        scores: Tensor = self.head(self.body(x[:, None])).flatten(1)
        return scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A network with its published recipe."""

    network: Callable[[FeatureConfig, int], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    preset: Recipe
    """Features, batch size, peak learning rate, warm-up, label smoothing, and augmentation."""


def _peer(features: FeatureConfig, augment: AugmentConfig, **train: Any) -> Recipe:
    return dataclasses.replace(
        study.DEFAULT, features=features, augment=augment, train=dataclasses.replace(study.DEFAULT.train, **train)
    )


PEERS = {
    "KWT-1": Peer(
        network=KeywordTransformer,
        optimizer=lambda weights: torch.optim.AdamW(weights, weight_decay=0.1),
        preset=_peer(
            FeatureConfig(num_mels=80, win_length=480, hop_length=160, f_max=7600.0, mel_scale="htk", n_fft=1024),
            dataclasses.replace(
                NO_AUGMENTATION,
                time_shift=10,
                noise_probability=0.8,
                time_stretch=0.15,
                num_time_masks=2,
                time_mask=25,
                num_frequency_masks=2,
                frequency_mask=14,
            ),
            batch_size=512,
            learning_rate=1e-3,
            warmup=10 / 140,
            label_smoothing=0.1,
        ),
    ),
    "BC-ResNet-3": Peer(
        network=BCResNet,
        optimizer=lambda weights: torch.optim.SGD(weights, momentum=0.9, weight_decay=1e-3),
        preset=_peer(
            FeatureConfig(num_mels=40, win_length=480, hop_length=160, f_min=0.0, mel_scale="htk"),
            dataclasses.replace(
                NO_AUGMENTATION,
                time_shift=10,
                noise_probability=0.8,
                num_time_masks=2,
                time_mask=20,
                num_frequency_masks=2,
                frequency_mask=5,
            ),
            batch_size=100,
            learning_rate=0.1,
            warmup=5 / 200,
            label_smoothing=0.0,
        ),
    ),
}
"""KWT masks up to 7 of 40 coefficients, here 14 of 80 bins. KWT and BC-ResNet do not standardize their features."""


class Recognizer:
    """What `kws.evaluate.robustness` needs of a model."""

    def __init__(self, network: nn.Module, features: FeatureConfig, words: list[str]) -> None:
        self.network, self.features, self.words = network.eval(), features, words

    @torch.inference_mode()
    def predict(self, waveforms: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Turns float32 [clips, num_samples] into probabilities, float32 [clips, words]."""
        from kws.preprocess.features import mel_spectrogram

        heard: npt.NDArray[np.float32] = (
            self.network(mel_spectrogram(self.features)(torch.from_numpy(waveforms))).softmax(-1).numpy()
        )
        return heard


def train(peer: Peer, tensors: Tensors, seed: int, seconds: float) -> tuple[nn.Module, float, float]:
    """Trains a peer for some seconds of processor time.

    Returns:
        The network after the epoch with the best validation accuracy, that accuracy, and clips per second.
    """
    config, split, validation = peer.preset.train, tensors.split("train"), tensors.split("validation")
    torch.manual_seed(seed)
    network = peer.network(tensors.features, len(tensors.words))
    optimizer = peer.optimizer(network.parameters())
    augment = Augment(peer.preset.augment, tensors.features, tensors.mean, tensors.noise())
    bf16 = wants_bf16("auto", torch.device("cpu"))
    batch_size = min(config.batch_size, len(split))
    spent, num_clips, best, kept = 0.0, 0, -1.0, network.state_dict()
    while spent < seconds:
        network.train()
        for batch in torch.randperm(len(split)).split(batch_size):
            if len(batch) < batch_size or spent >= seconds:
                break
            started = time.process_time()
            share = spent / seconds
            rise = min(share / config.warmup, 1.0)
            fall = (1 + math.cos(math.pi * max(share - config.warmup, 0) / (1 - config.warmup))) / 2
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rise * fall
            features, labels = split.batch(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                scores = network(augment(features))
            optimizer.zero_grad()
            F.cross_entropy(scores.float(), labels, label_smoothing=config.label_smoothing).backward()
            optimizer.step()
            num_clips += len(batch)
            spent += (time.process_time() - started) / torch.get_num_threads()
        accuracy = _accuracy(network, validation)
        if accuracy >= best:
            best, kept = accuracy, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return network, best, num_clips / spent


@torch.inference_mode()
def _accuracy(network: nn.Module, split: Split) -> float:
    network.eval()
    found = [network(split.batch(some)[0]).argmax(-1) for some in torch.arange(len(split)).split(256)]
    return float((torch.cat(found) == split.labels).float().mean())


def run(name: str, seed: int, seconds: float, recordings: Path, folder: Path) -> study.Result:
    """Trains and evaluates one peer, or reads what an earlier call found."""
    from kws.evaluate import robustness
    from kws.preprocess.step import preprocess

    cache = folder / "peers" / f"{name}-{seed}-{seconds:.0f}.json"
    if cache.is_file():
        return cast("study.Result", files.read_json(cache))
    peer = PEERS[name]
    tensors = Tensors(preprocess(recordings, folder, peer.preset, words="auto", num_threads=1))
    network, validation, rate = train(peer, tensors, seed, seconds)
    recognizer = Recognizer(network, tensors.features, tensors.words)
    found = {
        "variant": name,
        "seed": seed,
        "seconds": seconds,
        "clips_per_second": rate,
        "validation": validation,
        "num_parameters": sum(weight.numel() for weight in network.parameters()),
        "epochs": rate * seconds / len(tensors.split("train")),
    }
    for split in ("validation", "test"):
        found[split + "_conditions"] = dict(
            robustness.measure(cast("Any", recognizer), recordings, tensors.split(split).clips)
        )
    cache.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(cache, found)
    return found


@as_command()
def main() -> None:
    """Parses flags, trains, prints a table, and writes peers.json."""
    parser = argparse.ArgumentParser(
        prog="python -m research.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="URL, archive or folder of recordings")
    parser.add_argument("--folder", type=Path, default=Path("var/study"), help="(default: %(default)s)")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS), help="(default: both)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[41], help="(default: 41)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1200,
        help="processor time of each training: give that of the default preset, which python -m research.study "
        "prints (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, which share the cores (default: 1)")
    options = parser.parse_args()
    from kws.download.step import download

    recordings = download(options.source, "", options.folder)
    with study.pool(options.jobs) as workers:
        waiting = [
            workers.submit(run, name, seed, options.seconds, recordings, options.folder)
            for seed in options.seeds
            for name in options.peers
        ]
        found = [each.result() for each in waiting]
    print("| network | seed | parameters | clips/s | epochs | validation | test | 10 dB | 0 dB | 8 kHz |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in found:
        test = row["test_conditions"]
        accuracies = (row["validation"], test["clean"], test["noise at 10 dB"], test["noise at 0 dB"], test["8 kHz"])
        print(
            f"| {row['variant']} | {row['seed']} | {row['num_parameters']:,} | {row['clips_per_second']:.0f} | "
            f"{row['epochs']:.1f} | {' | '.join(f'{100 * accuracy:.1f}' for accuracy in accuracies)} |"
        )
    files.write_json(options.folder / "peers.json", found)


if __name__ == "__main__":
    main()
