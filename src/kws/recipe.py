"""The recipe: everything that determines a model but the recordings and the words, as one value.

A recipe is what the steps hand on and what config.json and a model keep, whole. The defaults of the classes are the
default recipe. Names of recipes (presets) and texts such as `train.weight_decay=0.1` are looked up once, by
`make_recipe`, at a command line or at the beginning of a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kws.settings import Settings, choice, number, parse_assignments, replaced, require


@dataclass(frozen=True, kw_only=True)
class FeatureConfig(Settings):
    """How a waveform of one second becomes a mel spectrogram of [num_mels, num_frames]."""

    sample_rate: int = number(16_000, above=0, at_most=1_000_000)
    """Samples per second; recordings with another rate are resampled."""

    num_samples: int = number(16_000, above=0, at_most=10_000_000)
    """Samples per clip; a shorter recording is padded with zeros, a longer one is cropped."""

    fit: str = choice("center", "start")
    """Where a shorter recording is placed in the padding, and which part of a longer one is kept: center keeps the
    second in which most is said, start the first."""

    n_fft: int = number(512, above=0, at_most=1 << 16)
    """Length of the FFT in samples, an even number."""

    win_length: int = number(400, above=0)
    """Length of the Hann window in samples; 400 samples are 25 ms."""

    hop_length: int = number(200, above=0)
    """Samples between two frames; 200 samples are 12.5 ms and give 81 frames in one second."""

    num_mels: int = number(128, above=0, at_most=1 << 12)
    """Number of mel bins."""

    f_min: float = 20.0
    """Lowest frequency of the filter bank, in Hz."""

    f_max: float = 8000.0
    """Highest frequency of the filter bank, in Hz."""

    mel_scale: str = choice("slaney", "htk")
    """The mel scale. Slaney's is linear below 1 kHz, so that none of 128 filters falls between two FFT bins."""

    log: bool = True
    """Whether to take the natural logarithm of the mel power (stored as float16) or raw power (stored as float32)."""

    log_offset: float = 1e-6
    """Added to the mel power before the logarithm."""

    normalize: bool = True
    """Whether the model standardizes every mel bin to mean 0 and standard deviation 1 over the training split."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_fft % 2 == 0, "n_fft", "be even", self.n_fft)
        require(self.win_length <= self.n_fft, "win_length", f"be at most n_fft ({self.n_fft})", self.win_length)
        half = f"exceed half of n_fft ({self.n_fft})"
        require(2 * self.num_samples > self.n_fft, "num_samples", half, self.num_samples)
        # Far beyond speech: a damaged file with larger settings would make us allocate more memory than there is.
        size = self.num_mels * self.num_frames
        require(size <= 10_000_000, "num_mels times frames", "be at most 10,000,000", size)
        nyquist = self.sample_rate / 2
        band = (self.f_min, self.f_max)
        require(0 <= band[0] < band[1] <= nyquist, "f_min, f_max", f"be between 0 and {nyquist:g} Hz, in order", band)

    @property
    def num_frames(self) -> int:
        """Frames per clip: windows are centred, so there is one more than there are hops."""
        return self.num_samples // self.hop_length + 1

    @property
    def dtype(self) -> str:
        """NumPy type of the stored features; raw power exceeds the range of float16."""
        return "float16" if self.log else "float32"


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The shape of `kws.model.network.AudioTransformer`."""

    num_layers: int = number(4, above=0)
    """Number of transformer blocks."""

    num_heads: int = number(4, above=0)
    """Attention heads per block."""

    width: int = number(128, above=0)
    """Channels per token."""

    feedforward: int = number(512, above=0)
    """Hidden channels of the feed-forward layer of a block."""

    frames_per_token: int = number(4, above=0)
    """Spectrogram frames per token."""

    stem: str = choice("conv", "none")
    """How frames become tokens: none (each frame is a token; width must equal num_mels) or conv (convolutions)."""

    stem_pool: int = number(1, above=0)
    """Neighbouring mel bins that are averaged to one before the first convolution."""

    stem_channels: tuple[int, int, int, int] = (16, 32, 64, 96)
    """Channels of the four convolutions of the stem."""

    stem_activation: str = choice("silu", "relu")
    """Activation function of the convolutions of the stem."""

    positions: bool = True
    """Whether learned position embeddings are added to the tokens. Without them the model ignores their order."""

    norm_first: bool = True
    """LayerNorm before attention and feed-forward (pre-norm) instead of after the residual sum (post-norm)."""

    activation: str = choice("gelu", "relu")
    """Activation function of the feed-forward layer."""

    dropout: float = number(0.0, at_least=0, below=1)
    """Dropout of the attention weights, of both residual branches and inside the feed-forward layer."""

    drop_path: float = number(0.1, at_least=0, below=1)
    """Stochastic depth: probability that a clip skips a residual branch of the last block; it grows linearly from 0 in
    the first."""

    scores: str = choice("clip", "tokens")
    """What gets scores: the clip, as the mean of its tokens, or every token by itself, which hears words in streams."""

    reach: tuple[int, int] = (5, 3)
    """How many tokens before and after itself a token attends to in each block, if tokens get scores."""

    other_words: int = number(0, at_least=0, at_most=1000)
    """At most how many unknown words, the most frequent ones, have a class of their own; these add up to the class of
    unknown words. A model that has to tell one from two hears more in them than one that only has to tell that they are
    none of its words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width % self.num_heads == 0, "width", f"be a multiple of num_heads ({self.num_heads})", self.width)
        one = self.stem != "none" or self.frames_per_token == 1
        require(one, "frames_per_token", "be 1 if stem is none", self.frames_per_token)
        require(min(self.stem_channels) > 0, "stem_channels", "be positive", self.stem_channels)
        plain = self.scores == "clip" or (self.stem == "conv" and self.norm_first and not self.positions)
        require(plain, "scores", "be clip unless stem is conv, norm_first is True and positions is False", self.scores)
        only = self.scores == "tokens" or not self.other_words
        require(only, "other_words", "be 0 unless scores is tokens", self.other_words)
        require(min(self.reach) >= 0 and max(self.reach) <= 100, "reach", "be from 0 to 100 tokens", self.reach)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Settings):
    """How training augments the features of a batch; drawn anew for every clip and training step."""

    time_shift: int = number(8, at_least=0)
    """Largest time shift in frames, in either direction."""

    gain_db: tuple[float, float] = (-30.0, 10.0)
    """Range of the change of level, in dB: people also speak softly, and far from their microphone."""

    noise_probability: float = number(0.8, at_least=0, at_most=1)
    """Probability of adding background noise to a clip, if the archive has any."""

    noise_snr_db: tuple[float, float] = (0.0, 30.0)
    """Range of the signal-to-noise ratio of the added noise, in dB."""

    time_stretch: float = number(0.15, at_least=0, below=1)
    """Largest relative change of speed, in either direction."""

    frequency_warp: float = number(0.1, at_least=0, below=1)
    """Largest relative stretch of the mel axis, in either direction (vocal tract length perturbation)."""

    bandlimit_probability: float = number(0.2, at_least=0, at_most=1)
    """Probability of removing everything above a random cut-off frequency, as telephones and cheap microphones do."""

    bandlimit_hz: float = number(3400.0, above=0)
    """Lowest cut-off frequency, in Hz; the highest is that of the filter bank."""

    num_time_masks: int = number(2, at_least=0)
    """SpecAugment: number of time masks."""

    time_mask: int = number(12, at_least=0)
    """SpecAugment: longest time mask, in frames."""

    num_frequency_masks: int = number(2, at_least=0)
    """SpecAugment: number of frequency masks."""

    frequency_mask: int = number(16, at_least=0)
    """SpecAugment: widest frequency mask, in mel bins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gain_db", "noise_snr_db"):
            low, high = getattr(self, name)
            require(low <= high, name, "be in order", (low, high))

    @property
    def is_on(self) -> bool:
        """Whether anything changes."""
        strengths = (self.time_shift, self.noise_probability, self.time_stretch, self.frequency_warp)
        masks = (self.num_time_masks, self.num_frequency_masks)
        return any((*strengths, *self.gain_db, *masks, self.bandlimit_probability))


NO_AUGMENTATION = AugmentConfig(
    time_shift=0,
    gain_db=(0.0, 0.0),
    noise_probability=0.0,
    time_stretch=0.0,
    frequency_warp=0.0,
    bandlimit_probability=0.0,
    num_time_masks=0,
    time_mask=0,
    num_frequency_masks=0,
    frequency_mask=0,
)
"""Features are used as they are."""


@dataclass(frozen=True, kw_only=True)
class ComposeConfig(Settings):
    """How streams are composed for a model whose tokens get scores (`kws.train.compose`)."""

    clips_per_stream: int = number(4, above=0, at_most=100)
    """Clips in a stream, which is as many seconds long."""

    speech_probability: float = number(0.4, at_least=0, at_most=1)
    """Probability that a stream is running speech from beginning to end, if the recordings have any."""

    noise_probability: float = number(0.04, at_least=0, at_most=1)
    """Probability that a stream has nothing but noise."""

    piece_probability: float = number(0.15, at_least=0, at_most=1)
    """Probability that a piece of running speech takes the place of a clip."""

    piece_seconds: tuple[float, float] = (0.6, 2.5)
    """Range of the lengths of such pieces, in seconds."""

    first: tuple[float, float] = (-0.3, 0.8)
    """Range of the time at which the first word begins, in seconds."""

    close_probability: float = number(0.4, at_least=0, at_most=1)
    """Probability that a word follows closely."""

    close_gap: tuple[float, float] = (-0.05, 0.15)
    """Range of the pauses before words that follow closely, in seconds."""

    gap: tuple[float, float] = (0.1, 0.9)
    """Range of all other pauses, in seconds."""

    level_db: float = number(6.0, at_least=0)
    """Largest change of the level of each word and piece of speech, in dB, in either direction."""

    reverberation_probability: float = number(0.35, at_least=0, at_most=1)
    """Probability of reverberation."""

    reverberation_seconds: tuple[float, float] = (0.15, 0.9)
    """Range of the reverberation time, in which sound decays by 60 dB, in seconds."""

    middle_seconds: float = number(0.11, above=0)
    """Largest distance from the middle of a word at which a token has its label."""

    near_seconds: float = number(0.28, above=0)
    """Largest distance at which a token without the label of the word counts for nothing."""

    negative_weight: float = number(1.0, above=0)
    """Weight of the loss of tokens without a word, against that of words."""

    hard_weight: float = number(0.5, at_least=0)
    """Weight of the loss of the tokens without a word that most resemble one."""

    hard_share: float = number(0.02, above=0, at_most=1)
    """Share of the tokens that are these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("piece_seconds", "first", "close_gap", "gap", "reverberation_seconds"):
            low, high = getattr(self, name)
            require(low <= high, name, "be in order", (low, high))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """How a model is trained."""

    epochs: int = number(30, above=0)
    """Passes over the training split."""

    min_clips: int = number(320_000, at_least=0)
    """Smallest number of clips to train on in total: a small training split gets as many more epochs as that takes."""

    batch_size: int = number(64, above=0)
    """Clips per training step; for several processes see scale_with_processes."""

    scale_with_processes: bool = False
    """With N processes, False divides the batch among them, so that N does not change the result; True gives each
    process a whole batch and multiplies the learning rate by N, as the baseline does."""

    learning_rate: float = number(3e-3, above=0)
    """Peak learning rate."""

    optimizer: str = choice("muon", "adamw", "adam")
    """The optimizer: muon (Muon for matrices and convolutions, AdamW for everything else), adamw or adam."""

    weight_decay: float = number(0.15, at_least=0)
    """Decoupled weight decay, not applied to biases, norms and positions."""

    schedule: str = choice("cosine", "step")
    """Learning rate schedule: cosine (linear warm-up, then half a cosine to 0) or step (times 0.9 every 3 epochs)."""

    warmup: float = number(0.05, at_least=0, below=1)
    """Fraction of the training steps over which the cosine schedule warms up."""

    label_smoothing: float = number(0.1, at_least=0, below=1)
    """Probability mass of the target that is spread evenly over all words."""

    clip_norm: float = number(1.0, at_least=0)
    """Gradient norm above which gradients are clipped; 0: never."""

    ema_decay: float = number(0.999, at_least=0, below=1)
    """Decay per step of an exponential moving average of the weights, which is then validated and saved in their place;
    0: no average."""

    precision: str = choice("auto", "bf16", "float32")
    """Type of matrix products: bf16 (bfloat16 by autocast), float32, or auto (bf16 if the hardware supports it)."""

    init: str = ""
    """Model to start from: champion, a version or a .pth file (see `kws.train.start`); empty: random weights."""

    seed: int = number(41, above=0)
    """Random seed of the initial weights, the order of clips, augmentation and dropout."""

    checkpoint_steps: int = number(200, above=0)
    """Training steps between two checkpoints; one is also written at the end of every epoch."""

    keep_checkpoints: int = number(3, above=0)
    """Number of the latest checkpoints to keep."""

    debug: bool = False
    """A short run to check that everything works: at most 1,000 training clips, 10 epochs, batches of 64."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Settings):
    """Features, split, model, augmentation and training: with the recordings and the words, they determine a model."""

    name: str = "default"
    """The preset from which the recipe was made."""

    features: FeatureConfig = FeatureConfig()
    """How waveforms become features."""

    split: str = choice("speaker", "random")
    """How clips are divided into train, validation and test: speaker (each speaker in one split only) or random
    (95/3/2 % of the clips; of fewer than 1,000 clips 80/10/10 % of each word)."""

    unknown_clips: int = number(1, above=0)
    """Clips of unknown words in the training split, as a multiple of the clips that a word has on average; fewer if the
    recordings do not have as many. Validation and test splits always have as many as a word has."""

    model: ModelConfig = ModelConfig()
    """The shape of the network."""

    augment: AugmentConfig = AugmentConfig()
    """What training changes in a clip before it sees it."""

    compose: ComposeConfig = ComposeConfig()
    """How clips, speech and noise become streams, if tokens get scores."""

    train: TrainConfig = TrainConfig()
    """Optimization."""


RECIPES: Mapping[str, Recipe] = {
    "default": Recipe(),
    "small": Recipe(
        name="small",
        model=ModelConfig(
            num_layers=2,
            width=64,
            feedforward=128,
            frames_per_token=8,
            stem_pool=2,
            stem_channels=(12, 24, 48, 64),
            drop_path=0.0,
        ),
        augment=AugmentConfig(time_mask=8, frequency_mask=10),
    ),
    "streams": Recipe(
        name="streams",
        features=FeatureConfig(num_mels=64),
        unknown_clips=5,
        model=ModelConfig(
            num_layers=3,
            width=96,
            feedforward=256,
            stem_pool=2,
            positions=False,
            scores="tokens",
            reach=(7, 4),
            other_words=100,
        ),
        augment=AugmentConfig(noise_probability=0.95, noise_snr_db=(2.0, 30.0), time_mask=6, num_frequency_masks=1),
        train=TrainConfig(epochs=76, label_smoothing=0.0),
    ),
    "baseline": Recipe(
        name="baseline",
        features=FeatureConfig(fit="start", n_fft=400, f_min=0.0, mel_scale="htk", log=False, normalize=False),
        split="random",
        model=ModelConfig(
            feedforward=2048,
            frames_per_token=1,
            stem="none",
            positions=False,
            norm_first=False,
            activation="relu",
            dropout=0.1,
            drop_path=0.0,
        ),
        augment=NO_AUGMENTATION,
        train=TrainConfig(
            min_clips=0,
            batch_size=256,
            scale_with_processes=True,
            learning_rate=1e-3,
            optimizer="adam",
            weight_decay=0.0,
            schedule="step",
            label_smoothing=0.0,
            clip_norm=0.0,
            ema_decay=0.0,
            precision="float32",
        ),
    ),
}
"""`baseline` is exactly what the project started from; `default` is the best on clips that has been measured since;
`small` has an eighth of its parameters and a ninth of its multiplications, and the same features, so that both train on
the same tensors; `streams` hears words in running speech: it scores every token, and trains
on composed streams (docs/serving.md)."""

INIT_MIN_CLIPS = 10_000
"""Upper limit of `min_clips` when training starts from a model: 3,000 to 30,000 clips gave the same accuracy."""


def make_recipe(preset: str = "default", set: Sequence[str] = (), **given: Any) -> Recipe:
    """Returns a named recipe with some settings replaced.

    `debug` sets epochs, batch size and min_clips as well unless they are given; `epochs` alone lifts min_clips, and
    `init` lowers it.

    Args:
        preset: a name in RECIPES.
        set: texts such as `train.weight_decay=0.1`, which name any setting.
        given: `split` and fields of `TrainConfig`, as values or as texts; None, "" and False leave what the recipe
            says.

    Raises:
        ValueError: there is no such recipe or setting, or a value is out of range.
    """
    require(preset in RECIPES, "preset", f"be one of {', '.join(RECIPES)}", preset)
    recipe = RECIPES[preset]
    values = parse_assignments(recipe, set)
    for name, value in given.items():
        if value is not None and value is not False and value != "":
            path = name if name == "split" else f"train.{name}"
            values |= parse_assignments(recipe, [f"{path}={value}"]) if isinstance(value, str) else {path: value}
    if values.get("train.debug"):
        values = {"train.epochs": 10, "train.batch_size": 64, "train.min_clips": 0} | values
    elif "train.epochs" in values:
        values = {"train.min_clips": 0} | values
    elif "train.init" in values:
        values = {"train.min_clips": min(recipe.train.min_clips, INIT_MIN_CLIPS)} | values
    return replaced(recipe, values)
