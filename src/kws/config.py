"""Every setting and its default, in one place.

Three layers. `FeatureConfig`, `ModelConfig` and `TrainConfig` say everything about a recognizer; a `Preset` is one
choice of all three. `PipelineConfig` holds the few settings that a user changes from run to run: they are the
parameters of the pipeline and the flags of the command line, and `0` or `""` there means "as the preset says".
"""

import ast
import dataclasses
import inspect
import math
import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin

SPEECH_COMMANDS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
SPEECH_COMMANDS_SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
"""URL and digest of the published archive, the constants of torchaudio.datasets.SPEECHCOMMANDS."""

SPEECH_COMMANDS_WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
"""The 35 words of Speech Commands v0.02, in the order of the classes."""

BACKGROUND_NOISE = "_background_noise_"
"""The folder of an archive that holds long recordings of noise instead of a word."""

UNKNOWN = "_unknown_"
"""The class of all words that are not to be told apart."""

SILENCE = "_silence_"
"""The class of clips without a word, which are cut from the recordings of noise."""

SPLITS = ("train", "validation", "test")


def require(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises ValueError "{name} must {rule}, got {value}" unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must {rule}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """How a waveform of one second becomes a mel spectrogram of [num_mels, num_frames]."""

    sample_rate: int = 16_000
    """Samples per second; recordings of another rate are resampled."""

    num_samples: int = 16_000
    """Samples of a clip; a shorter recording is padded with zeros, a longer one is cut."""

    fit: Literal["center", "start"] = "center"
    """Where a shorter recording is put among the zeros, and what is kept of a longer one: the loudest second or the
    first."""

    n_fft: int = 512
    """Length of the Fourier transform in samples, an even number."""

    win_length: int = 400
    """Length of the Hann window in samples: 400 are 25 ms."""

    hop_length: int = 200
    """Samples between two frames: 200 are 12.5 ms, which gives 81 frames a second."""

    num_mels: int = 128
    """Bins of the mel filter bank."""

    f_min: float = 20.0
    """Lowest frequency of the filter bank, in Hz."""

    f_max: float = 8000.0
    """Highest frequency of the filter bank, in Hz."""

    mel_scale: Literal["slaney", "htk"] = "slaney"
    """The mel scale. Slaney's is linear below 1 kHz, so that no filter of 128 falls between two bins of the FFT."""

    log: bool = True
    """Natural logarithm of the mel power (stored as float16); without it raw power (stored as float32)."""

    log_offset: float = 1e-6
    """Added to the mel power before the logarithm."""

    normalize: bool = True
    """Shift and scale every mel bin to mean 0 and deviation 1 over the training split, inside the model."""

    def __post_init__(self) -> None:
        for name in ("sample_rate", "num_samples", "n_fft", "win_length", "hop_length", "num_mels"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        require(self.n_fft % 2 == 0, "n_fft", "be even", self.n_fft)
        require(self.win_length <= self.n_fft, "win_length", f"be at most n_fft ({self.n_fft})", self.win_length)
        require(
            2 * self.num_samples > self.n_fft, "num_samples", f"exceed half of n_fft ({self.n_fft})", self.num_samples
        )
        # Nothing that people say: a file with such settings would ask for more memory than there is.
        most = {"sample_rate": 1_000_000, "num_samples": 10_000_000, "n_fft": 1 << 16, "num_mels": 1 << 12}
        for name, value in most.items():
            require(getattr(self, name) <= value, name, f"be at most {value}", getattr(self, name))
        size = self.num_mels * self.num_frames
        require(size <= 10_000_000, "num_mels times frames", "be at most 10,000,000", size)
        nyquist = self.sample_rate / 2
        require(0 <= self.f_min < self.f_max <= nyquist, "f_min, f_max", f"lie in 0 to {nyquist:g} Hz, in order",
                (self.f_min, self.f_max))  # fmt: skip
        require(self.fit in ("center", "start"), "fit", "be center or start", self.fit)
        require(self.mel_scale in ("slaney", "htk"), "mel_scale", "be slaney or htk", self.mel_scale)

    @property
    def num_frames(self) -> int:
        """Frames of a clip: windows are centred, so there is one more than hops."""
        return self.num_samples // self.hop_length + 1

    @property
    def dtype(self) -> str:
        """NumPy type of the stored features. Raw power exceeds the range of float16."""
        return "float16" if self.log else "float32"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of `kws.model.network.AudioTransformer`."""

    num_layers: int = 4
    """Transformer blocks."""

    num_heads: int = 4
    """Attention heads of a block."""

    width: int = 128
    """Channels of a token."""

    feedforward: int = 512
    """Hidden channels of the feed-forward part of a block."""

    frames_per_token: int = 1
    """Spectrogram frames that become one token."""

    stem: Literal["none", "conv"] = "conv"
    """What makes tokens of frames: nothing (then width must equal num_mels), or convolutions."""

    positions: bool = True
    """Learned positions are added to the tokens. Without them the model hears a bag of frames."""

    norm_first: bool = True
    """LayerNorm before attention and feed-forward (pre-norm) instead of after the sum (post-norm)."""

    activation: Literal["gelu", "relu"] = "gelu"
    """Non-linearity of the feed-forward part."""

    dropout: float = 0.0
    """Dropout of attention weights, of both residual branches and inside the feed-forward part."""

    drop_path: float = 0.0
    """Stochastic depth: the chance that a clip skips a residual branch in the last block; it grows linearly."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "width", "feedforward", "frames_per_token"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        require(self.width % self.num_heads == 0, "width", f"be a multiple of num_heads ({self.num_heads})", self.width)
        require(self.stem in ("none", "conv"), "stem", "be none or conv", self.stem)
        require(self.stem != "none" or self.frames_per_token == 1, "frames_per_token", "be 1 where stem is none",
                self.frames_per_token)  # fmt: skip
        for name in ("dropout", "drop_path"):
            require(0 <= getattr(self, name) < 1, name, "lie in 0 to 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What training does to the features of a batch, on the device, a new draw for every clip and step."""

    time_shift: int = 0
    """Largest shift of the word in frames, either way."""

    gain_db: float = 0.0
    """Largest change of level in dB, either way."""

    noise_probability: float = 0.0
    """Share of the clips that get background noise, where the archive has any."""

    noise_snr_db: tuple[float, float] = (0.0, 30.0)
    """Range of the signal-to-noise ratio of the added noise, in dB."""

    time_stretch: float = 0.0
    """Largest relative change of speed, either way."""

    frequency_warp: float = 0.0
    """Largest relative stretch of the mel axis, either way (vocal tract length perturbation)."""

    bandlimit_probability: float = 0.0
    """Share of the clips that lose all above a random frequency, as over a telephone or a cheap microphone."""

    bandlimit_hz: float = 3400.0
    """Lowest of these frequencies, in Hz; the highest is that of the filter bank."""

    num_time_masks: int = 0
    """SpecAugment: masks over time."""

    time_mask: int = 0
    """SpecAugment: longest mask over time, in frames."""

    num_frequency_masks: int = 0
    """SpecAugment: masks over mel bins."""

    frequency_mask: int = 0
    """SpecAugment: widest mask over mel bins."""

    def __post_init__(self) -> None:
        for name in ("time_shift", "gain_db", "num_time_masks", "time_mask", "num_frequency_masks", "frequency_mask"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        for name in ("noise_probability", "bandlimit_probability"):
            require(0 <= getattr(self, name) <= 1, name, "lie in 0 to 1", getattr(self, name))
        require(self.bandlimit_hz > 0, "bandlimit_hz", "be positive", self.bandlimit_hz)
        for name in ("time_stretch", "frequency_warp"):
            require(0 <= getattr(self, name) < 1, name, "lie in 0 to 1", getattr(self, name))
        low, high = self.noise_snr_db
        require(low <= high, "noise_snr_db", "be in order", self.noise_snr_db)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are found."""

    epochs: int = 30
    """Passes over the training split."""

    min_clips: int = 0
    """Clips to train on at least: a small training split gets as many more epochs as that takes."""

    batch_size: int = 256
    """Clips of a step. See scale_with_processes for what several processes make of it."""

    scale_with_processes: bool = False
    """With N processes: False divides the batch among them, so that N does not change the result; True gives each
    process a whole batch and multiplies the learning rate by N, as the baseline does."""

    learning_rate: float = 1e-3
    """Peak learning rate."""

    optimizer: Literal["muon", "adamw", "adam"] = "adamw"
    """Muon for matrices and convolutions and AdamW for all else, or AdamW, or Adam."""

    weight_decay: float = 0.05
    """Decoupled weight decay; biases, norms and positions get none."""

    schedule: Literal["cosine", "step"] = "cosine"
    """Linear warm-up and a half cosine down to zero, step by step; or times 0.9 every 3 epochs (StepLR)."""

    warmup: float = 0.05
    """Share of all steps over which the cosine schedule warms up."""

    label_smoothing: float = 0.1
    """Probability spread evenly over all words in the target."""

    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""

    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is validated and saved;
    0 keeps none."""

    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Matrix products in bfloat16 (autocast) or float32; auto takes bfloat16 where the hardware multiplies it."""

    seed: int = 41
    """Random seed of the weights, the order of clips and everything drawn."""

    checkpoint_steps: int = 200
    """Steps between two checkpoints; there is one at the end of every epoch as well."""

    keep_checkpoints: int = 3
    """How many of the latest checkpoints are kept."""

    debug: bool = False
    """A short run to see that all parts work: at most 1,000 training clips, 10 epochs, batches of 64."""

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
            require(0 <= getattr(self, name) < 1, name, "lie in 0 to 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named recipe: features, split, model and training."""

    features: FeatureConfig
    split: Literal["speaker", "random"]
    model: ModelConfig
    train: TrainConfig


PRESETS: Mapping[str, Preset] = {
    "default": Preset(
        features=FeatureConfig(),
        split="speaker",
        model=ModelConfig(frames_per_token=4, drop_path=0.1),
        train=TrainConfig(
            min_clips=320_000,
            batch_size=64,
            learning_rate=3e-3,
            optimizer="muon",
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
"""`baseline` is what the project started from, exactly; `default` is the best that was measured since."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """The parameters of the pipeline, which are the flags of `python -m pipeline` and of `kws` too."""

    source: str = SPEECH_COMMANDS_URL
    """Recordings: URL or path of an archive (tar, zip) laid out as Speech Commands is, or a folder of <word>/*.wav."""

    sha256: str = ""
    """Expected SHA-256 of the archive; empty: that of the published archive where it is the source, else unchecked."""

    data_root: str = "/data"
    """The folder, or mounted volume, that holds data sets, tensors, runs and models."""

    words: str = "all"
    """Words to tell apart: all (the 35 of v0.02), auto (the folders there are), or a list such as yes,no,stop."""

    unknown_words: str = ""
    """Words that become the one class _unknown_, beside a class _silence_ cut from the background noise: empty (neither
    class), auto (all folders that are not among the words), or a list."""

    preset: str = "default"
    """Recipe: default (the best measured) or baseline (what the project started from)."""

    split: str = ""
    """Who is trained on and who tests: speaker (a speaker is in one split only) or random (95/3/2 % of the clips);
    empty: as the preset says."""

    max_bad_fraction: float = 0.01
    """Largest share of unreadable recordings that is left out with a warning; above it preprocessing fails."""

    epochs: int = 0
    """Passes over the training split; 0: as the preset says."""

    batch_size: int = 0
    """Clips of a training step; 0: as the preset says."""

    learning_rate: float = 0.0
    """Peak learning rate; 0: as the preset says."""

    seed: int = 41
    """Random seed of weights, order and augmentation."""

    num_nodes: int = 1
    """Machines to train on: workers of the PyTorchJob. More than 1 needs a cluster."""

    processes_per_node: int = 1
    """Training processes of a node: one for every GPU, or one for every few CPU cores."""

    debug: bool = False
    """A short run to see that all parts work: at most 1,000 training clips, 10 epochs, batches of 64."""

    min_accuracy: float = 0.8
    """Test accuracy that a model must reach to become the champion."""

    def __post_init__(self) -> None:
        require(self.source != "", "source", "be a URL, an archive or a folder", self.source)
        require(self.sha256 == "" or (len(self.sha256) == 64 and set(self.sha256) <= set("0123456789abcdef")),
                "sha256", "be 64 lower-case hexadecimal digits", self.sha256)  # fmt: skip
        require(self.preset in PRESETS, "preset", f"be one of {', '.join(PRESETS)}", self.preset)
        require(self.split in ("", "speaker", "random"), "split", "be speaker or random", self.split)
        for name in ("max_bad_fraction", "min_accuracy"):
            require(0 <= getattr(self, name) <= 1, name, "lie in 0 to 1", getattr(self, name))
        for name in ("epochs", "batch_size", "learning_rate"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        for name in ("seed", "num_nodes", "processes_per_node"):
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """What a synthetic corpus holds (`kws.download.synthesize`)."""

    words: str = "all"
    """What to say: words with commas between them, such as lights,music,lights_on, or all for the 35 words of Speech
    Commands. An underscore is a pause between two words."""

    clips_per_word: int = 60
    """Recordings of every word, each by another voice as long as there are enough; a voice is in one split only."""

    seed: int = 41
    """Random seed of voices, splits, speeds, levels and noise."""

    def __post_init__(self) -> None:
        require(parse_words(self.words) is not None, "words", "be listed with commas between them, or all", self.words)
        require(self.clips_per_word >= 3, "clips_per_word", "be at least 3, a voice for every split",
                self.clips_per_word)  # fmt: skip
        require(self.seed >= 0, "seed", "be at least 0", self.seed)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What a server takes on (`kws serve`)."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's."""

    port: int = 8080
    """Port of REST, metrics and the page; 0 takes a free one."""

    grpc_port: int = 8081
    """Port of gRPC; 0 takes a free one, -1 leaves gRPC out."""

    model_name: str = "kws"
    """Name of the model in the protocol: /v2/models/kws."""

    int8: bool = False
    """Answer by model.int8.onnx, where a version has it."""

    num_threads: int = 0
    """Runs of the model at a time; 0 takes one for every core that the container may use."""

    max_batch: int = 16
    """Clips that are gathered from several requests for one run of the model."""

    max_clips: int = 64
    """Clips of one request at most."""

    max_waiting: int = 512
    """Clips that may wait; beyond it requests are answered with 429."""

    max_request_mib: int = 16
    """Size of a request at most, in MiB."""

    max_seconds: float = 30.0
    """Duration of one audio file at most, in seconds."""

    max_streams: int = 64
    """Pages that may listen at a time."""

    collect: str = ""
    """Folder that keeps the recordings that people make on the page; empty: none are kept, and the page offers none."""

    poll_seconds: float = 1.0
    """How often champion.json is read, in seconds."""

    drain_seconds: float = 5.0
    """How long a server that was told to stop still answers, so that nobody is sent to it any more, in seconds."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_clips", "max_waiting", "max_request_mib", "max_seconds", "max_streams",
                     "poll_seconds"):  # fmt: skip
            require(getattr(self, name) > 0, name, "be positive", getattr(self, name))
        for name in ("num_threads", "drain_seconds", "port"):
            require(getattr(self, name) >= 0, name, "be at least 0", getattr(self, name))
        require(self.grpc_port >= -1, "grpc_port", "be at least -1", self.grpc_port)
        require(max(self.port, self.grpc_port) < 1 << 16, "port, grpc_port", "be below 65536",
                (self.port, self.grpc_port))  # fmt: skip
        require(self.model_name.replace("-", "").replace("_", "").isalnum(), "model_name",
                "consist of letters, digits, - and _", self.model_name)  # fmt: skip


def train_config(*, preset: str, **overrides: Any) -> TrainConfig:
    """Returns the training settings of a preset, changed where an override is not 0.

    Raises:
        ValueError: the preset does not exist, or a value is out of range.
    """
    require(preset in PRESETS, "preset", f"be one of {', '.join(PRESETS)}", preset)
    chosen = {name: value for name, value in overrides.items() if value}
    if chosen.get("debug"):
        chosen = {"epochs": 10, "batch_size": 64, "min_clips": 0} | chosen
    elif "epochs" in chosen:
        chosen["min_clips"] = 0
    return dataclasses.replace(PRESETS[preset].train, **chosen)


def parse_words(words: str, at_least: int = 2) -> tuple[str, ...] | None:
    """Returns the words that `all` or a list names, or None for `auto`.

    Raises:
        ValueError: a word is empty, listed twice, or no name of a folder; or there are fewer than `at_least`.
    """
    if words == "auto":
        return None
    if words == "all":
        return SPEECH_COMMANDS_WORDS
    names = tuple(word.strip() for word in words.split(","))
    number = {1: "a word", 2: "two words"}[at_least]
    require(len(names) >= at_least and len(set(names)) == len(names), "words", f"name at least {number}, each once",
            words)  # fmt: skip
    for name in names:
        require(name != "" and name == os.path.basename(name) and not name.startswith((".", "_")),
                "a word", "be the name of a folder and not start with . or _", name)  # fmt: skip
    return names


def require_words(words: Any) -> None:
    """Raises ValueError unless these can be the words of a model: at least two, each once."""
    fits = isinstance(words, list) and all(isinstance(word, str) and word for word in words)
    require(fits and len(set(words)) == len(words) >= 2, "words", "be a list of two words or more, each once", words)


Config = TypeVar("Config")


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds a config from what `dataclasses.asdict` gave, after a round trip through JSON.

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
    except TypeError:  # compared a word with a number
        config = None
    for name, value in restored.items():
        kind = known[name].type
        require(_is_of(value, kind), name, f"be of the type {getattr(kind, '__name__', kind)}", value)
    assert config is not None
    return config


def _is_of(value: object, kind: Any) -> bool:
    """Tells whether a value may stand in a field of a plain type; floats must be finite."""
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind if kind in (int, bool, str) else True


def field_docs(cls: type[Any]) -> dict[str, str]:
    """Returns the docstring under each field of a config: the help text of its flag."""
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
