"""Evaluates a model on clips: accuracy, F1, confusion matrix, calibration error, and the worst mistakes."""

import csv
import dataclasses
import io
import itertools
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kws import files
from kws.cores import computing
from kws.data.clip import Clip, class_of
from kws.data.index import Ints
from kws.data.sources import AUTO, list_recordings
from kws.model.bundle import Recognizer
from kws.model.calibration import expected_calibration_error
from kws.model.distribution import CONFIDENCE_BOUNDS, Distribution
from kws.model.predict import AnyRecognizer
from kws.preprocess.audio import read
from kws.preprocess.tensors import Tensors
from kws.progress import progress

log = logging.getLogger(__name__)

BATCH = 64
NUM_MISTAKES = 20
NUM_PAIRS = 20

HEARD = "heard"
"""What a model heard in every clip, in the JSON of the evaluate step; not published."""


@dataclass(frozen=True, kw_only=True)
class WordScore:
    """Precision, recall and F1 of one word."""

    word: str
    num_clips: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often a word was recognized as another one."""

    word: str
    predicted: str
    num_clips: int
    share: float
    """Of the clips of the word, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A clip that was recognized as another word."""

    clip: Clip
    truth: str
    predicted: str
    probability: float

    def as_json(self) -> dict[str, Any]:
        """Returns the mistake as JSON, the clip by its id."""
        return dataclasses.asdict(self) | {"clip": self.clip.id}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of a model on a set of clips."""

    words: list[str]
    matrix: npt.NDArray[np.float64]
    """Counts [true words, predicted words]."""
    calibration_error: float
    """Expected calibration error, 0 to 1."""
    mistakes: list[Mistake]
    """The NUM_MISTAKES most confident mistakes, the most confident first."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Additional results of the evaluate step, as JSON: robustness, streams, thresholds."""
    labels: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """The true word of every clip, [clips], as indices into the words."""
    predicted: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    """The most probable word of every clip, [clips]."""
    confidence: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Its probability, [clips]."""

    @property
    def num_clips(self) -> int:
        """Number of clips."""
        return int(self.matrix.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of the clips that were recognized."""
        return float(self.matrix.trace() / self.matrix.sum())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the accuracy."""
        return wilson(self.accuracy, self.num_clips)

    @property
    def word_scores(self) -> list[WordScore]:
        """Precision, recall and F1 of every word that has clips."""
        spoken, said, right = self.matrix.sum(axis=1), self.matrix.sum(axis=0), self.matrix.diagonal()
        return [
            WordScore(
                word=word,
                num_clips=int(spoken[i]),
                precision=float(right[i] / max(said[i], 1)),
                recall=float(right[i] / spoken[i]),
                f1=float(2 * right[i] / (spoken[i] + said[i])),
            )
            for i, word in enumerate(self.words)
            if spoken[i]
        ]

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the words that have clips."""
        scores = self.word_scores
        return sum(score.f1 for score in scores) / len(scores)

    @property
    def worst_pairs(self) -> list[Confusion]:
        """The NUM_PAIRS pairs of words that are confused most often, the most frequent first."""
        mistakes = self.matrix - np.diag(self.matrix.diagonal())
        flat = mistakes.ravel()
        most = np.argpartition(-flat, min(NUM_PAIRS, flat.size - 1))[:NUM_PAIRS]
        spoken = self.matrix.sum(axis=1)
        pairs = [divmod(int(index), len(self.words)) for index in most[np.argsort(-flat[most], kind="stable")]]
        return [
            Confusion(
                word=self.words[row],
                predicted=self.words[column],
                num_clips=int(mistakes[row, column]),
                share=float(mistakes[row, column] / spoken[row]),
            )
            for row, column in pairs
            if mistakes[row, column]
        ]

    def of_hardest(self) -> tuple[list[str], npt.NDArray[np.float64]]:
        """Returns the words and the confusion matrix, if there are too many of them only those of the hardest words."""
        from kws import plots

        shown = plots.hardest(self.matrix)
        return [self.words[index] for index in shown], self.matrix[np.ix_(shown, shown)]

    def summary(self) -> dict[str, Any]:
        """Returns the metrics as JSON."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
            "num_clips": self.num_clips,
            "words": [dataclasses.asdict(score) for score in self.word_scores],
            "confusions": [dataclasses.asdict(pair) for pair in self.worst_pairs],
            "mistakes": [mistake.as_json() for mistake in self.mistakes],
            # With these a server shows whether it still hears what the model was tested on.
            "recognized": {word: int(said) for word, said in zip(self.words, self.matrix.sum(axis=0), strict=True)},
            "confidence": dataclasses.asdict(Distribution.of(self.confidence, CONFIDENCE_BOUNDS)),
            **self.more,
        }

    def figures(self) -> dict[str, float]:
        """Returns what the metrics of a run show."""
        found = {name: getattr(self, name) for name in ("accuracy", "macro_f1", "calibration_error", "num_clips")}
        for name in {"new", "old"} & self.more.get("new_clips", {}).keys():
            one = self.more["new_clips"][name]
            found |= {f"accuracy_on_{name}_clips": one["accuracy"], f"num_{name}_clips": one["num_clips"]}
        return found

    def heard(self) -> dict[str, Any]:
        """Returns what the model heard in every clip, as JSON; see `compare_heard`."""
        return {"predicted": self.predicted.tolist(), "confidence": self.confidence.astype(float).round(6).tolist()}

    def csv(self) -> str:
        """Returns the confusion matrix as CSV, with a row for each true and a column for each predicted word."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true \\ predicted", *self.words])
        for word, row in zip(self.words, self.matrix, strict=True):
            writer.writerow([word, *row.astype(int).tolist()])
        return text.getvalue()


def wilson(accuracy: float, num_clips: int) -> tuple[float, float]:
    """Returns the 95 % confidence interval of an accuracy (Wilson score interval, which also holds near 0 and 1).

    With no clips nothing is known: 0 to 1.
    """
    if not num_clips:
        return 0.0, 1.0
    z = 1.959964
    middle = (accuracy + z * z / (2 * num_clips)) / (1 + z * z / num_clips)
    half = z / (1 + z * z / num_clips) * math.sqrt(accuracy * (1 - accuracy) / num_clips + (z / (2 * num_clips)) ** 2)
    return max(0.0, middle - half), min(1.0, middle + half)


def compare(
    known: Sequence[str], probabilities: Tensor | Iterable[Tensor], truth: Sequence[str], clips: Sequence[Clip]
) -> Evaluation:
    """Compares the predictions of a model with the true words.

    `probabilities` are float [clips, words of the model], or batches of them, of which none is kept. A true word that
    the model does not know counts as a mistake.
    """
    batches = [probabilities] if isinstance(probabilities, Tensor) else probabilities
    confidence, predicted = map(torch.cat, zip(*(batch.max(-1) for batch in batches), strict=True))
    return compare_heard(known, confidence, predicted, truth, clips)


def compare_heard(
    known: Sequence[str], confidence: Tensor, predicted: Tensor, truth: Sequence[str], clips: Sequence[Clip]
) -> Evaluation:
    """Compares what a model heard with the true words; see `compare`.

    `confidence` is the highest probability of every clip, float [clips], and `predicted` its word, int64 [clips].
    """
    words = [*known, *sorted(set(truth) - set(known))]
    number = {word: index for index, word in enumerate(words)}
    labels = torch.tensor([number[word] for word in truth])
    matrix = torch.bincount(labels * len(words) + predicted, minlength=len(words) ** 2).double()
    wrong = torch.nonzero(predicted != labels)[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:NUM_MISTAKES].tolist()
    return Evaluation(
        words=words,
        matrix=matrix.reshape(len(words), len(words)).numpy(),
        calibration_error=expected_calibration_error(confidence, predicted == labels),
        mistakes=[
            Mistake(clip=clips[i], truth=truth[i], predicted=words[int(predicted[i])], probability=float(confidence[i]))
            for i in worst
        ],
        labels=labels.numpy(),
        predicted=predicted.numpy(),
        confidence=confidence.numpy(),
    )


def evaluate_tensors(recognizer: AnyRecognizer, tensors: Tensors, most: int = 0) -> Evaluation:
    """Evaluates a model on the test split of the tensors.

    An exported model, or one that has other features than the tensors, hears the recordings of the same clips. If
    `most` is not 0, so many clips are taken, spread evenly over the split.

    Raises:
        ValueError: the model hears recordings, and these no longer exist or cannot be read.
    """
    part = tensors.split("test", most)
    truth = [tensors.words[label] for label in part.labels.tolist()]
    if isinstance(recognizer, Recognizer) and recognizer.features == tensors.features:
        batches = (part.batch(rows)[0] for rows in torch.split(torch.arange(len(part)), BATCH))
        probabilities: Tensor | Iterable[Tensor] = map(recognizer.probabilities, score(recognizer, batches))
    else:
        recordings = Path(tensors.manifest["recordings"]["path"])
        if not recordings.is_dir():
            raise ValueError(f"the recordings {recordings.name} must still exist for this model to hear them, got none")
        unreadable: dict[str, str] = {}
        probabilities = predict_clips(recognizer, recordings, part.clips, unreadable)
        for clip, reason in itertools.islice(unreadable.items(), 1):
            log.warning("%s: %s", recordings / clip, reason)
            raise ValueError(
                f"the recordings {recordings.name} must be as preprocessing read them, got {len(unreadable)} that "
                f"cannot be read, the first is {clip}"
            )
    return compare(recognizer.words, probabilities, truth, part.clips)


@computing()
def evaluate_recordings(
    recognizer: AnyRecognizer, recordings: Path, layout: str = AUTO
) -> tuple[Evaluation, dict[str, str]]:
    """Evaluates a model on a folder of recordings in any layout, on the words that it knows, in whatever case.

    If the model has a class of unknown words, all other words belong to it; otherwise they are left out.

    Returns:
        The evaluation, and the clips that cannot be read, with the reasons.

    Raises:
        ValueError: the folder holds no word that the model knows, or no readable file.
    """
    listing = list_recordings(recordings, layout).spelled(recognizer.words)
    listing.report()
    folders = listing.words
    known = [name for name in folders if class_of(name, recognizer.words) in recognizer.words]
    if not known:
        raise ValueError(
            f"recordings must hold folders of words that the model knows ({', '.join(recognizer.words)}), got "
            f"{', '.join(folders) or 'none'} in {recordings}"
        )
    unknown = [name for name in folders if name not in known]
    if unknown:
        log.info("left out, as the model does not know the words: %s", ", ".join(unknown))
    found = listing.clips.of_words(known)
    unreadable: dict[str, str] = {}
    probabilities = predict_clips(recognizer, recordings, found, unreadable)
    clips = found.take(np.array([row for row, name in enumerate(found.ids) if name not in unreadable], np.int64))
    if not len(clips):
        raise ValueError(f"recordings must hold readable files, got {len(found)} unreadable ones in {recordings}")
    truth = [recognizer.words[label] for label in clips.labels(recognizer.words).tolist()]
    return compare(recognizer.words, probabilities, truth, clips), unreadable


def predict_clips(
    recognizer: AnyRecognizer, recordings: Path, clips: Sequence[Clip], unreadable: dict[str, str]
) -> Tensor:
    """Reads recordings and applies a model to them, a batch at a time.

    `unreadable` receives the ids of the clips that cannot be read, which the result leaves out, with the reasons.

    Returns:
        Probabilities, float32 [readable clips, words].
    """
    found = [np.empty((0, len(recognizer.words)), dtype=np.float32)]
    with progress(len(clips), "clips", "recognize") as bar:
        for first in range(0, len(clips), BATCH):
            waveforms = []
            for clip in clips[first : first + BATCH]:
                try:
                    waveforms.append(read(recordings, clip, recognizer.features))
                except (ValueError, OSError) as error:
                    unreadable[clip.id] = str(error)
                bar.update()
            if waveforms:
                found.append(recognizer.predict(np.stack(waveforms)))
    return torch.from_numpy(np.concatenate(found))


@torch.inference_mode()
def score(recognizer: Recognizer, batches: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yields the scores (logits) of batches of features, float32 [clips, words]."""
    device = recognizer.model.mean.device
    for features in batches:
        yield recognizer.model(features.to(device)).float().cpu()


def save_confusion(evaluation: Evaluation, folder: Path) -> None:
    """Writes confusion.png and confusion.csv into a folder."""
    from kws import plots

    files.write(folder / "confusion.png", plots.png(plots.confusion(evaluation.matrix, evaluation.words)))
    files.write(folder / "confusion.csv", evaluation.csv())
