"""Every setting and its default, in one place.

There are three layers. `FeatureConfig`, `ModelConfig` and `TrainConfig` define a recognizer completely; a `Preset` is a
named choice of all three. `PipelineConfig` holds the few settings that a user changes from run to run: they are the
parameters of the pipeline and the flags of the command line, and `0` or `""` there means "as the preset says".
"""

import ast
import dataclasses
import functools
import inspect
import math
import os
import textwrap
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

SPEECH_COMMANDS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
SPEECH_COMMANDS_SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
"""URL and digest of the published archive, as in torchaudio.datasets.SPEECHCOMMANDS."""

SPEECH_COMMANDS_WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go",
    "happy", "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila",
    "six", "stop", "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
"""The 35 words of Speech Commands v0.02, in class order."""

MODEL_REGISTRY = "KWS_MODEL_REGISTRY"
"""Environment variable with the address of a Kubeflow Model Registry; if it is not set, nothing is registered."""

BACKGROUND_NOISE = "_background_noise_"
"""The folder of an archive that holds long recordings of background noise instead of a word."""

UNKNOWN = "_unknown_"
"""The class that collects all words which the model need not tell apart."""

SILENCE = "_silence_"
"""The class of clips without a word, which are cut from the recordings of background noise."""

SPLITS = ("train", "validation", "test")


def require(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises ValueError "{name} must {rule}, got {value}" unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must {rule}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How a waveform of one second becomes a mel spectrogram of [num_mels, num_frames]."""

    sample_rate: int = 16_000
    """Samples per second; recordings with another rate are resampled."""

    num_samples: int = 16_000
    """Samples per clip; a shorter recording is padded with zeros, a longer one is cropped."""

    fit: Literal["center", "start"] = "center"
    """Where a shorter recording is placed in the padding, and which part of a longer one is kept: center keeps the
    loudest second, start the first."""

    n_fft: int = 512
    """Length of the FFT in samples, an even number."""

    win_length: int = 400
    """Length of the Hann window in samples; 400 samples are 25 ms."""

    hop_length: int = 200
    """Samples between two frames; 200 samples are 12.5 ms and give 81 frames in one second."""

    num_mels: int = 128
    """Number of mel bins."""

    f_min: float = 20.0
    """Lowest frequency of the filter bank, in Hz."""

    f_max: float = 8000.0
    """Highest frequency of the filter bank, in Hz."""

    mel_scale: Literal["slaney", "htk"] = "slaney"
    """The mel scale. Slaney's is linear below 1 kHz, so that none of 128 filters falls between two FFT bins."""

    log: bool = True
    """Whether to take the natural logarithm of the mel power (stored as float16) or raw power (stored as float32)."""

    log_offset: float = 1e-6
    """Added to the mel power before the logarithm."""

    normalize: bool = True
    """Whether the model standardizes every mel bin to mean 0 and standard deviation 1 over the training split."""

    def __post_init__(self) -> None:
        for name in ("sample_rate", "num_samples", "n_fft", "win_length", "hop_length", "num_mels"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        require(self.n_fft % 2 == 0, "n_fft", "be even", self.n_fft)
        require(self.win_length <= self.n_fft, "win_length", f"be at most n_fft ({self.n_fft})", self.win_length)
        require(
            2 * self.num_samples > self.n_fft, "num_samples", f"exceed half of n_fft ({self.n_fft})", self.num_samples
        )
        # Far beyond speech: a damaged file with larger settings would make us allocate more memory than there is.
        most = {"sample_rate": 1_000_000, "num_samples": 10_000_000, "n_fft": 1 << 16, "num_mels": 1 << 12}
        for name, value in most.items():
            require(getattr(self, name) <= value, name, f"be at most {value}", getattr(self, name))
        size = self.num_mels * self.num_frames
        require(size <= 10_000_000, "num_mels times frames", "be at most 10,000,000", size)
        nyquist = self.sample_rate / 2
        require(
            0 <= self.f_min < self.f_max <= nyquist,
            "f_min, f_max",
            f"be between 0 and {nyquist:g} Hz, in order",
            (self.f_min, self.f_max),
        )
        require(self.fit in ("center", "start"), "fit", "be center or start", self.fit)
        require(self.mel_scale in ("slaney", "htk"), "mel_scale", "be slaney or htk", self.mel_scale)

    @property
    def num_frames(self) -> int:
        """Frames per clip: windows are centred, so there is one more than there are hops."""
        return self.num_samples // self.hop_length + 1

    @property
    def dtype(self) -> str:
        """NumPy type of the stored features; raw power exceeds the range of float16."""
        return "float16" if self.log else "float32"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of `kws.model.network.AudioTransformer`."""

    num_layers: int = 4
    """Number of transformer blocks."""

    num_heads: int = 4
    """Attention heads per block."""

    width: int = 128
    """Channels per token."""

    feedforward: int = 512
    """Hidden channels of the feed-forward layer of a block."""

    frames_per_token: int = 1
    """Spectrogram frames per token."""

    stem: Literal["none", "conv"] = "conv"
    """How frames become tokens: none (each frame is a token; width must equal num_mels) or conv (convolutions)."""

    stem_activation: Literal["relu", "silu"] = "relu"
    """Activation function of the convolutions of the stem."""

    positions: bool = True
    """Whether learned position embeddings are added to the tokens. Without them the model ignores their order."""

    norm_first: bool = True
    """LayerNorm before attention and feed-forward (pre-norm) instead of after the residual sum (post-norm)."""

    activation: Literal["gelu", "relu"] = "gelu"
    """Activation function of the feed-forward layer."""

    dropout: float = 0.0
    """Dropout of the attention weights, of both residual branches and inside the feed-forward layer."""

    drop_path: float = 0.0
    """Stochastic depth: probability that a clip skips a residual branch of the last block; it grows linearly from 0 in
    the first."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "width", "feedforward", "frames_per_token"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        require(self.width % self.num_heads == 0, "width", f"be a multiple of num_heads ({self.num_heads})", self.width)
        require(self.stem in ("none", "conv"), "stem", "be none or conv", self.stem)
        require(
            self.stem != "none" or self.frames_per_token == 1,
            "frames_per_token",
            "be 1 if stem is none",
            self.frames_per_token,
        )
        require(self.stem_activation in ("relu", "silu"), "stem_activation", "be relu or silu", self.stem_activation)
        for name in ("dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, name, "be at least 0 and less than 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How training augments the features of a batch; drawn anew for every clip and training step."""

    time_shift: int = 0
    """Largest time shift in frames, in either direction."""

    gain_db: float = 0.0
    """Largest change of level in dB, in either direction."""

    noise_probability: float = 0.0
    """Probability of adding background noise to a clip, if the archive has any."""

    noise_snr_db: tuple[float, float] = (0.0, 30.0)
    """Range of the signal-to-noise ratio of the added noise, in dB."""

    time_stretch: float = 0.0
    """Largest relative change of speed, in either direction."""

    frequency_warp: float = 0.0
    """Largest relative stretch of the mel axis, in either direction (vocal tract length perturbation)."""

    bandlimit_probability: float = 0.0
    """Probability of removing everything above a random cut-off frequency, as telephones and cheap microphones do."""

    bandlimit_hz: float = 3400.0
    """Lowest cut-off frequency, in Hz; the highest is that of the filter bank."""

    num_time_masks: int = 0
    """SpecAugment: number of time masks."""

    time_mask: int = 0
    """SpecAugment: longest time mask, in frames."""

    num_frequency_masks: int = 0
    """SpecAugment: number of frequency masks."""

    frequency_mask: int = 0
    """SpecAugment: widest frequency mask, in mel bins."""

    fragment_share: float = 0.0
    """Share of the clips that become fragments of other clips with the class _unknown_, if the model has that class
    (see `kws.train.fragments`)."""

    def __post_init__(self) -> None:
        for name in ("time_shift", "gain_db", "num_time_masks", "time_mask", "num_frequency_masks", "frequency_mask"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        for name in ("noise_probability", "bandlimit_probability", "fragment_share"):
            require(0 <= getattr(self, name) <= 1, name, "be between 0 and 1", getattr(self, name))
        require(self.bandlimit_hz > 0, "bandlimit_hz", "be positive", self.bandlimit_hz)
        for name in ("time_stretch", "frequency_warp"):
            require(0 <= getattr(self, name) < 1, name, "be at least 0 and less than 1", getattr(self, name))
        low, high = self.noise_snr_db
        require(low <= high, "noise_snr_db", "be in order", self.noise_snr_db)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int = 30
    """Passes over the training split."""

    min_clips: int = 0
    """Smallest number of clips to train on in total: a small training split gets as many more epochs as that takes."""

    batch_size: int = 256
    """Clips per training step; for several processes see scale_with_processes."""

    scale_with_processes: bool = False
    """With N processes, False divides the batch among them, so that N does not change the result; True gives each
    process a whole batch and multiplies the learning rate by N, as the baseline does."""

    learning_rate: float = 1e-3
    """Peak learning rate."""

    optimizer: Literal["muon", "adamw", "adam"] = "adamw"
    """The optimizer: muon (Muon for matrices and convolutions, AdamW for everything else), adamw or adam."""

    weight_decay: float = 0.05
    """Decoupled weight decay, not applied to biases, norms and positions."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Learning rate schedule: cosine (linear warm-up, then half a cosine to 0) or step (times 0.9 every 3 epochs)."""

    warmup: float = 0.05
    """Fraction of the training steps over which the cosine schedule warms up."""

    label_smoothing: float = 0.1
    """Probability mass of the target that is spread evenly over all words."""

    clip_norm: float = 1.0
    """Gradient norm above which gradients are clipped; 0: never."""

    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then validated and saved in their place;
    0: no average."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Type of matrix products: bf16 (bfloat16 by autocast), float32, or auto (bf16 if the hardware supports it)."""

    init: str = ""
    """Model to start from: champion, a version or a .pth file (see `kws.train.start`); empty: random weights."""

    seed: int = 41
    """Random seed of the initial weights, the order of clips, augmentation and dropout."""

    checkpoint_steps: int = 200
    """Training steps between two checkpoints; one is also written at the end of every epoch."""

    keep_checkpoints: int = 3
    """Number of the latest checkpoints to keep."""

    debug: bool = False
    """A short run to check that everything works: at most 1,000 training clips, 10 epochs, batches of 64."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "seed", "checkpoint_steps", "keep_checkpoints"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        for name in ("weight_decay", "clip_norm", "min_clips"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        require(self.optimizer in ("muon", "adamw", "adam"), "optimizer", "be muon, adamw or adam", self.optimizer)
        require(self.schedule in ("cosine", "step"), "schedule", "be cosine or step", self.schedule)
        require(self.precision in ("auto", "bf16", "float32"), "precision", "be auto, bf16 or float32", self.precision)
        for name in ("warmup", "label_smoothing", "ema_decay"):
            require(0 <= getattr(self, name) < 1, name, "be at least 0 and less than 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named choice of features, split, model and training settings."""

    features: FeatureConfig
    split: Literal["speaker", "random"]
    model: ModelConfig
    train: TrainConfig
    unknown_clips: int = 1
    """Clips of unknown words in the training split, as a multiple of the clips that a word has on average; fewer if the
    recordings do not have as many. Validation and test splits always have as many as a word has."""


_DEFAULT = Preset(
    features=FeatureConfig(),
    split="speaker",
    model=ModelConfig(frames_per_token=4, stem_activation="silu", drop_path=0.1),
    train=TrainConfig(
        min_clips=320_000,
        batch_size=64,
        learning_rate=3e-3,
        optimizer="muon",
        weight_decay=0.15,
        ema_decay=0.999,
        augment=AugmentConfig(
            time_shift=8,
            gain_db=10.0,
            noise_probability=0.8,
            time_stretch=0.15,
            frequency_warp=0.1,
            bandlimit_probability=0.2,
            num_time_masks=2,
            time_mask=12,
            num_frequency_masks=2,
            frequency_mask=16,
        ),
    ),
)

PRESETS: Mapping[str, Preset] = {
    "default": _DEFAULT,
    "streams": dataclasses.replace(
        _DEFAULT,
        unknown_clips=5,
        train=dataclasses.replace(
            _DEFAULT.train, augment=dataclasses.replace(_DEFAULT.train.augment, fragment_share=0.25)
        ),
    ),
    "baseline": Preset(
        features=FeatureConfig(fit="start", n_fft=400, f_min=0.0, mel_scale="htk", log=False, normalize=False),
        split="random",
        model=ModelConfig(
            feedforward=2048, stem="none", positions=False, norm_first=False, activation="relu", dropout=0.1
        ),
        train=TrainConfig(
            scale_with_processes=True,
            optimizer="adam",
            weight_decay=0.0,
            schedule="step",
            label_smoothing=0.0,
            clip_norm=0.0,
            precision="float32",
        ),
    ),
}
"""`baseline` is exactly what the project started from; `default` is the best on clips that has been measured since;
`streams` adds fragments and unknown words, which cost a point on clips and spare false alarms (docs/serving.md)."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The parameters of the pipeline, which are also the flags of `python -m pipeline` and `kws`."""

    source: str = SPEECH_COMMANDS_URL
    """Recordings: URL or path of an archive (tar, zip) laid out like Speech Commands, or a folder of <word>/*.wav."""

    sha256: str = ""
    """Expected SHA-256 of the archive; empty: the known digest of the published archive, no check of others."""

    data_root: str = "/data"
    """The folder or mounted volume that holds data sets, tensors, runs and models."""

    words: str = "all"
    """Words to recognize: all (the 35 of v0.02), auto (one for every folder), or a list such as yes,no,stop."""

    unknown_words: str = ""
    """Words that form the class _unknown_, which is added together with a class _silence_ cut from background noise:
    empty (neither class), auto (all folders that are not among the words), or a list."""

    preset: str = "default"
    """Preset: default (the best measured on clips), streams (fewer false alarms in running speech, for models with
    unknown words) or baseline (what the project started from)."""

    split: str = ""
    """How clips are divided into train, validation and test: speaker (each speaker in one split only) or random
    (95/3/2 % of the clips; of fewer than 1,000 clips 80/10/10 % of each word); empty: as the preset says."""

    max_bad_fraction: float = 0.01
    """Largest fraction of unreadable recordings that are left out with a warning; above it preprocessing fails."""

    epochs: int = 0
    """Passes over the training split; 0: as the preset says."""

    batch_size: int = 0
    """Clips per training step; 0: as the preset says."""

    learning_rate: float = 0.0
    """Peak learning rate; 0: as the preset says."""

    init: str = ""
    """Model to start training from, which may know other words: champion, the name of a version, or the path of a .pth
    file, relative to the data root; empty: random weights."""

    seed: int = 41
    """Random seed of the initial weights, the order of clips and augmentation."""

    num_nodes: int = 1
    """Number of machines to train on, the workers of the PyTorchJob; more than 1 needs a cluster."""

    processes_per_node: int = 1
    """Training processes per node: one for every GPU, or one for every few CPU cores."""

    debug: bool = False
    """A short run to check that everything works: at most 1,000 training clips, 10 epochs, batches of 64."""

    min_accuracy: float = 0.8
    """Test accuracy that a model must reach to become the champion."""

    def __post_init__(self) -> None:
        require(self.source != "", "source", "be a URL, an archive or a folder", self.source)
        require(
            self.sha256 == "" or (len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")),
            "sha256",
            "be 64 lower-case hexadecimal digits",
            self.sha256,
        )
        require(self.preset in PRESETS, "preset", f"be one of {', '.join(PRESETS)}", self.preset)
        require(self.split in ("", "speaker", "random"), "split", "be speaker or random", self.split)
        for name in ("max_bad_fraction", "min_accuracy"):
            require(0 <= getattr(self, name) <= 1, name, "be between 0 and 1", getattr(self, name))
        for name in ("epochs", "batch_size", "learning_rate"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        for name in ("seed", "num_nodes", "processes_per_node"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """The content of a synthetic corpus (`kws.download.synthesize`)."""

    words: str = "all"
    """Words to speak, separated by commas, such as lights,music,lights_on; or all, the 35 words of Speech Commands. An
    underscore is spoken as a pause between two words."""

    clips_per_word: int = 60
    """Recordings per word, each with a different voice as long as there are enough; a voice is in one split only."""

    seed: int = 41
    """Random seed of voices, splits, speeds, levels and noise."""

    def __post_init__(self) -> None:
        require(parse_words(self.words) is not None, "words", "be all or a list separated by commas", self.words)
        require(
            self.clips_per_word >= 3, "clips_per_word", "be at least 3, a voice for every split", self.clips_per_word
        )
        require(self.seed >= 0, "seed", "be at least 0", self.seed)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Addresses and limits of a server (`kws serve`)."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all addresses of this machine."""

    port: int = 8080
    """Port of REST, metrics and the page; 0: any free port."""

    grpc_port: int = 8081
    """Port of gRPC; 0: any free port, -1: no gRPC."""

    model_name: str = "kws"
    """Name of the model in the protocol: /v2/models/kws."""

    int8: bool = False
    """Use model.int8.onnx if a version has it."""

    num_threads: int = 0
    """Batches that are computed at the same time; 0: one for every core that the container may use."""

    max_batch: int = 16
    """Largest number of clips in a batch of several requests."""

    max_clips: int = 64
    """Largest number of clips in a request."""

    max_waiting: int = 512
    """Largest number of clips in the queue; beyond it requests are answered with status 429."""

    max_request_mib: int = 16
    """Largest size of a request, in MiB."""

    max_seconds: float = 30.0
    """Longest audio file, in seconds."""

    max_streams: int = 64
    """Largest number of pages that listen at the same time."""

    collect: str = ""
    """Folder for the recordings that people make on the page; empty: the page does not offer to record."""

    poll_seconds: float = 1.0
    """Seconds between two reads of champion.json."""

    drain_seconds: float = 5.0
    """Seconds for which a server that was told to stop still answers, until no more requests are routed to it."""

    def __post_init__(self) -> None:
        for name in (
            "max_batch",
            "max_clips",
            "max_waiting",
            "max_request_mib",
            "max_seconds",
            "max_streams",
            "poll_seconds",
        ):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        for name in ("num_threads", "drain_seconds", "port"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        require(self.grpc_port >= -1, "grpc_port", "be at least -1", self.grpc_port)
        require(
            max(self.port, self.grpc_port) < 1 << 16, "port, grpc_port", "be below 65536", (self.port, self.grpc_port)
        )
        require(
            self.model_name.replace("-", "").replace("_", "").isalnum(),
            "model_name",
            "consist of letters, digits, - and _",
            self.model_name,
        )


INIT_MIN_CLIPS = 10_000
"""Upper limit of `min_clips` when training starts from a model: 3,000 to 30,000 clips gave the same accuracy."""


def train_config(*, preset: str, **overrides: Any) -> TrainConfig:
    """Returns the training settings of a preset, with every override that is not 0 or "" applied.

    `debug` overrides epochs, batch size and min_clips as well; `epochs` alone lifts min_clips, and `init` lowers it.

    Raises:
        ValueError: the preset does not exist, or a value is out of range.
    """
    require(preset in PRESETS, "preset", f"be one of {', '.join(PRESETS)}", preset)
    chosen = {name: value for name, value in overrides.items() if value}
    if chosen.get("debug"):
        chosen = {"epochs": 10, "batch_size": 64, "min_clips": 0} | chosen
    elif "epochs" in chosen:
        chosen["min_clips"] = 0
    elif "init" in chosen:
        chosen["min_clips"] = min(PRESETS[preset].train.min_clips, INIT_MIN_CLIPS)
    return dataclasses.replace(PRESETS[preset].train, **chosen)


def parse_words(words: str, at_least: int = 2) -> tuple[str, ...] | None:
    """Parses `all` or a list of words separated by commas; returns None for `auto`.

    Raises:
        ValueError: a word is empty, listed twice or cannot name a folder, or there are fewer than `at_least` (1 or 2).
    """
    if words == "auto":
        return None
    if words == "all":
        return SPEECH_COMMANDS_WORDS
    names = tuple(word.strip() for word in words.split(","))
    number = {1: "a word", 2: "two words"}[at_least]
    require(
        len(names) >= at_least and len(set(names)) == len(names), "words", f"name at least {number}, each once", words
    )
    for name in names:
        require(
            name != "" and name == os.path.basename(name) and not name.startswith((".", "_")),
            "a word",
            "be the name of a folder and not start with . or _",
            name,
        )
    return names


def require_words(words: Any) -> None:
    """Raises ValueError unless `words` can be the classes of a model: a list of at least two words, each once."""
    fits = isinstance(words, list) and all(isinstance(word, str) and word for word in words)
    require(fits and len(set(words)) == len(words) >= 2, "words", "be a list of two words or more, each once", words)


Config = TypeVar("Config")


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds a config from the result of `dataclasses.asdict`, after a round trip through JSON.

    Raises:
        ValueError: a field is unknown, or its value is of another type or out of range.
    """
    require(isinstance(values, Mapping), cls.__name__, "be a table of settings", values)
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(str(name) for name in values if name not in known)
    require(not unknown, cls.__name__, f"have fields among {', '.join(known)}", ", ".join(unknown))
    restored: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    if "augment" in restored:
        restored["augment"] = from_dict(AugmentConfig, restored["augment"])
    try:
        config = cls(**restored)
    except TypeError:  # __post_init__ compared a string with a number; the check below names the field
        config = None
    for name, value in restored.items():
        kind = known[name].type
        require(_is_of(value, kind), name, f"be of the type {getattr(kind, '__name__', kind)}", value)
    assert config is not None
    return config


def _is_of(value: object, kind: Any) -> bool:
    """Tells whether a value has the type of a field; floats must be finite."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind if kind in (int, bool, str) else True


def field_docs(cls: type[Any]) -> Mapping[str, str]:
    """Returns the docstring of each field of a config class, which is the help text of its flag."""
    return _field_docs(cast("Hashable", cls))


@functools.cache  # reading the source of a class takes 40 ms, and a command line asks for every flag
def _field_docs(cls: Any) -> Mapping[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
