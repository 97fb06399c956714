"""What a user chooses from run to run: the parameters of the pipeline, of a synthetic corpus and of a server.

The fields are the flags of the command line. What determines a model is in `kws.recipe`; None here means "as the recipe
says".
"""

import csv
import dataclasses
import io
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

from kws.recipe import Recipe, make_recipe
from kws.settings import Settings, choice, number, require
from kws.text import one_line, plain, wrong_with

SPEECH_COMMANDS_URL = "https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
SPEECH_COMMANDS_SHA256 = "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"
"""URL and digest of the published archive, as in torchaudio.datasets.SPEECHCOMMANDS."""

SPEECH_COMMANDS_WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go",
    "happy", "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila",
    "six", "stop", "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
"""The 35 words of Speech Commands v0.02, in class order."""

BACKGROUND_NOISE = "_background_noise_"
"""The folder of an archive that holds long recordings of background noise instead of a word."""

RUNNING_SPEECH = "_running_speech_"
"""The folder of an archive that holds recordings of people who talk (`kws.data.speech`)."""

HEARD = ".heard"
"""The hidden folder of a server with what it heard and nobody has confirmed yet (`kws.serve.page.heard`)."""

UNKNOWN = "_unknown_"
"""The class that collects all words which the model need not tell apart."""

SILENCE = "_silence_"
"""The class of clips without a word, which are cut from the recordings of background noise."""

SPLITS = ("train", "validation", "test")

FORMATS = {"onnx": ".onnx", "c": ".c", "litert": ".tflite", "page": ".html"}
"""The formats in which a model is exported, which are modules of `kws.model`, and how their files end."""

INT8 = "-int8"
"""What follows the name of a format whose matrices have 8 bits."""

DEFAULT_FORMATS = "onnx,onnx-int8"
"""The formats in which a version is published."""


@dataclass(frozen=True, kw_only=True)
class PipelineConfig(Settings):
    """The parameters of the pipeline, which are also the flags of `python -m pipeline` and `kws`."""

    source: str = field(default=SPEECH_COMMANDS_URL, metadata={"repeats": "\n"})
    """Recordings, in any layout of docs/data.md such as <word>/*: a folder, URL or path of an archive (tar, zip, 7z);
    either in a store (s3://, gs://, az://) or on the Hub (hf://datasets/NAME); env:NAME, an address in an environment
    variable. Several become one data set."""

    layout: str = "auto"
    """How the recordings are laid out: auto, or what settles it where that is unclear: word, split/word, speaker/word,
    word/speaker, list, pauses (long recordings of one word, cut at their pauses) or another of docs/data.md."""

    sha256: str = ""
    """Expected SHA-256 of the archive, of several sources one for each; empty: the known digest of the published
    archive, no check of others."""

    data_root: str = "/data"
    """The folder or mounted volume that holds data sets, tensors, runs and models."""

    words: str = "all"
    """Words to recognize: all (the 35 of v0.02), auto (one for every folder), or a list such as yes,no,stop."""

    unknown_words: str = ""
    """Words that form the class _unknown_, which is added together with a class _silence_ cut from background noise:
    empty (neither class), auto (all folders that are not among the words), or a list."""

    preset: str = "default"
    """Preset: default (the best measured on clips), small (0.13 million parameters instead of 0.98, a quarter of the
    time), streams (for models that listen to running speech; needs unknown words) or baseline (what the project started
    from)."""

    set: str = field(default="", metadata={"repeats": " "})
    """Other settings of the recipe to change, separated by spaces: train.weight_decay=0.1 augment.gain_db=-6,6"""

    split: str | None = None
    """How clips are divided into train, validation and test: speaker (each speaker in one split only) or random
    (95/3/2 % of the clips; of fewer than 1,000 clips 80/10/10 % of each word)."""

    max_bad_fraction: float = number(0.01, at_least=0, at_most=1)
    """Largest fraction of unreadable recordings that are left out with a warning; above it preprocessing fails."""

    epochs: int | None = None
    """Passes over the training split."""

    batch_size: int | None = None
    """Clips per training step."""

    learning_rate: float | None = None
    """Peak learning rate."""

    init: str = ""
    """Model to start training from, which may know other words: champion, the name of a version, or the path of a .pth
    file, relative to the data root; empty: random weights."""

    seed: int | None = None
    """Random seed of the initial weights, the order of clips and augmentation."""

    num_nodes: int = number(1, above=0)
    """Number of machines to train on, the workers of the PyTorchJob; more than 1 needs a cluster."""

    processes_per_node: int | None = number(None, above=0)
    """Training processes per node (default: one for every GPU, or without GPUs one for every core as long as each has
    16 clips of a batch; one for a short run or the preset baseline, see `kws.train.step`)."""

    debug: bool = False
    """A short run to check that everything works: at most 1,000 training clips, 10 epochs, batches of 64."""

    min_accuracy: float = number(0.8, at_least=0, at_most=1)
    """Test accuracy that a model must reach to become the champion."""

    formats: str = DEFAULT_FORMATS
    """Forms in which to publish the model besides model.pth: of onnx, c and litert, each also with -int8, in which
    matrices have 8 bits."""

    false_alarms_per_hour: float = number(1.0, above=0)
    """Largest number of false alarms per hour of running speech and noise, by which detection thresholds are chosen."""

    approval: str = choice("no", "yes")
    """yes: a better model becomes a candidate, and champion when a person approves it; the run does not wait."""

    keep_runs: int = number(0, at_least=0)
    """Finished runs to keep, with their versions and data: at its end a run deletes what is older and not needed, as
    kws clean does; 0: everything stays."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(split_sources(self.source) != [], "source", "be a URL, an archive or a folder", self.source)
        split_digests(self.sha256)
        parse_formats(self.formats)
        self.recipe()

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the compiled pipeline, in which what the recipe decides is a text, maybe empty."""
        found: dict[str, Any] = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            optional = types.NoneType in get_args(one.type)
            found[one.name] = value if not optional else "" if value is None else str(value)
        return found

    def recipe(self) -> Recipe:
        """Returns the recipe that these parameters describe.

        Raises:
            ValueError: there is no such preset or setting, or a value is out of range.
        """
        return make_recipe(
            self.preset,
            self.set.split(),
            split=self.split,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            init=self.init,
            seed=self.seed,
            debug=self.debug,
        )


@dataclass(frozen=True, kw_only=True)
class CleanConfig(Settings):
    """What stays on a volume that is cleaned (`kws.promote.clean`)."""

    keep: int = number(10, above=0)
    """Finished runs to keep, with their versions and data; champion, candidate, the champion before, and what a run in
    progress needs are kept, too."""

    days: float = number(2.0, at_least=0)
    """What was used so many days ago or later is kept; less than a run takes endangers runs in progress."""

    needed: str = field(default="", metadata={"repeats": "\n"})
    """A version, a path below the data root such as runs/NAME/best.pth, or a source of recordings that is needed."""

    dry_run: bool = False
    """Only say what would be deleted, and how much it is."""


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(Settings):
    """The content of a synthetic corpus (`kws.download.synthesize`)."""

    words: str = "all"
    """Words to speak, separated by commas, such as lights,music,lights_on; or all, the 35 words of Speech Commands. An
    underscore is spoken as a pause between two words."""

    language: str = "en"
    """Language in which the voices speak: a code of espeak-ng such as en, de, fr, hi, ar, ja (kana only) or cmn."""

    clips_per_word: int = number(60, at_least=3)
    """Recordings per word, each with a different voice as long as there are enough; a voice is in one split only."""

    seed: int = number(41, at_least=0)
    """Random seed of voices, splits, speeds, levels and noise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(parse_words(self.words) is not None, "words", "be all or a list separated by commas", self.words)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Settings):
    """Addresses and limits of a server (`kws serve`)."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all addresses of this machine."""

    port: int = number(8080, at_least=0, below=1 << 16)
    """Port of REST, metrics and the page; 0: any free port."""

    grpc_port: int = number(8081, at_least=-1, below=1 << 16)
    """Port of gRPC; 0: any free port, -1: no gRPC."""

    model_name: str = "kws"
    """Name of the model in the protocol: /v2/models/kws."""

    int8: bool = False
    """Use model.int8.onnx if a version has it."""

    num_threads: int = number(0, at_least=0)
    """Batches that are computed at the same time; 0: one for every core that the container may use."""

    max_batch: int = number(16, above=0)
    """Largest number of clips in a batch of several requests."""

    max_clips: int = number(64, above=0)
    """Largest number of clips in a request."""

    max_waiting: int = number(512, above=0)
    """Largest number of clips in the queue; beyond it requests are answered with status 429."""

    max_request_mib: int = number(16, above=0)
    """Largest size of a request, in MiB."""

    max_seconds: float = number(30.0, above=0)
    """Longest audio file, in seconds."""

    max_streams: int = number(64, above=0)
    """Largest number of pages that listen at the same time."""

    after: str = ""
    """Word of the model upon which a stream reports all others for a while; empty: as thresholds.json says."""

    after_seconds: float | None = number(None, above=0, at_most=60)
    """Seconds for which it does so (default: as thresholds.json says, otherwise 3)."""

    collect: str = ""
    """Folder for the recordings that people make on the page; empty: the page does not offer to record."""

    keep_heard: bool = False
    """Also keep in that folder, for 30 days, the sound of words that streams detect, nearly detect, or that listeners
    mark, until they are reviewed at /review; with a shadow also of what it hears otherwise, in requests too."""

    candidate: bool = False
    """Serve the version that waits for approval while there is one, otherwise the champion: for a canary."""

    shadow: str = ""
    """Version beside the champion that hears what the champion hears and answers nobody, to be compared in /metrics;
    candidate: whichever waits for approval; empty: none."""

    poll_seconds: float = number(1.0, above=0)
    """Seconds between two reads of champion.json and candidates.json."""

    drain_seconds: float = number(5.0, at_least=0)
    """Seconds for which a server that was told to stop still answers, until no more requests are routed to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = self.model_name.replace("-", "").replace("_", "").isalnum()
        require(plain, "model_name", "consist of letters, digits, - and _", self.model_name)
        require(not self.keep_heard or self.collect != "", "keep_heard", "have a folder, --collect DIR", self.collect)


def split_sources(sources: str) -> list[str]:
    """Splits a text into the sources that it names.

    They are separated by line ends; by commas or spaces where what follows begins like an address or a path (scheme://,
    env:, /, ./, ../ or ~/), so that a single path may have spaces and commas in it.
    """
    pieces = re.split(r"\n|[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://|env:|~?/|\.{1,2}/)", sources)
    return [piece.strip().rstrip(",") for piece in pieces if piece.strip(" \t\r\n,")]


def is_path(source: str) -> bool:
    """Tells whether a source is a path, and neither an address nor the name of a variable that holds one."""
    return "://" not in source and not source.startswith("env:")


def split_digests(sha256: str) -> list[str]:
    """Splits a text into digests, separated by commas or spaces.

    Raises:
        ValueError: one has other than 64 lower-case hexadecimal digits.
    """
    digests = sha256.replace(",", " ").split()
    fits = all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    require(fits, "sha256", "be 64 lower-case hexadecimal digits", sha256)
    return digests


def parse_words(words: str, at_least: int = 2) -> tuple[str, ...] | None:
    """Parses `all` or a list of words separated by commas or line ends; returns None for `auto`.

    Raises:
        ValueError: a word is listed twice or cannot be one, or there are fewer than `at_least` (1 or 2).
    """
    if words == "auto":
        return None
    if words == "all":
        return SPEECH_COMMANDS_WORDS
    # As CSV: a word with a comma in it stands in quotation marks.
    names = tuple(plain(word) for row in csv.reader(words.splitlines(), skipinitialspace=True) for word in row)
    number = {1: "a word", 2: "two words"}[at_least]
    require(
        len(names) >= at_least and len(set(names)) == len(names), "words", f"name at least {number}, each once", words
    )
    for name in names:
        wrong = wrong_with(name)
        require(not wrong, "a word", wrong.removeprefix("the name of a word must "), one_line(name))
    return names


def parse_formats(names: str) -> list[tuple[str, bool]]:
    """Splits a list such as onnx,onnx-int8,c into formats, and whether each is in 8 bits.

    Raises:
        ValueError: there is no such format.
    """
    found = []
    for name in filter(None, (one.strip() for one in names.split(","))):
        known = [*FORMATS, *(one + INT8 for one in FORMATS)]
        require(name in known, "formats", f"be among {', '.join(known)}", name)
        found.append((name.removesuffix(INT8), name.endswith(INT8)))
    return found


def join_words(words: Iterable[str]) -> str:
    """Writes a list of words as `parse_words` reads it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(words)
    return text.getvalue()


def require_words(words: Any) -> None:
    """Raises ValueError unless `words` can be the classes of a model: a list of at least two words, each once."""
    fits = isinstance(words, list) and all(isinstance(word, str) and word for word in words)
    require(fits and len(set(words)) == len(words) >= 2, "words", "be a list of two words or more, each once", words)
