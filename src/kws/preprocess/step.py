"""The preprocess step: converts a recordings folder to tensors, which training maps into memory."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kws import files, memory
from kws.config import BACKGROUND_NOISE, SILENCE, SPLITS, UNKNOWN, parse_words
from kws.cores import num_cores
from kws.data import classes, digest, splits
from kws.data.clip import Clip
from kws.data.index import Index
from kws.data.listing import Listing
from kws.data.sources import AUTO, PAUSES, WORD, list_recordings
from kws.data.speech import Talk
from kws.data.splits import Divided
from kws.data.words import alike, spelled_as
from kws.preprocess import copies, pauses
from kws.preprocess.audio import read, read_waveform, require_varied
from kws.preprocess.features import BATCH, VERSION, mel_spectrogram
from kws.preprocess.speech import save_speech
from kws.preprocess.tensors import INDEX, SCHEMA
from kws.progress import progress
from kws.recipe import FeatureConfig, Recipe
from kws.settings import require
from kws.text import printable
from kws.volume import require_volume

log = logging.getLogger(__name__)

DEFAULT = Recipe()

CLIPS_PER_TASK = 256


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Rows of one array for a thread to fill."""

    array: Path
    first_row: int
    recordings: Path
    clips: Sequence[Clip]
    features: FeatureConfig
    statistics: bool


@dataclass(frozen=True, kw_only=True)
class _Done:
    bad: Mapping[int, str]
    """Rows that could not be filled, and why."""
    sounds: npt.NDArray[np.uint64]
    """A digest of the waveform of every clip, [clips], by which copies are found; 0 for those that need not be."""
    total: npt.NDArray[np.float64]
    total_squares: npt.NDArray[np.float64]


def preprocess(
    recordings: Path,
    data_root: Path,
    recipe: Recipe = DEFAULT,
    *,
    words: str = "all",
    unknown_words: str = "",
    max_bad_fraction: float = 0.01,
    num_threads: int = 0,
    layout: str = AUTO,
) -> Path:
    """Computes the features of all recordings of some words; does nothing if that has been done before.

    The tensors folder holds `<split>.features.npy` of each split ([clips, num_mels, num_frames], float16 for log-mel);
    index.npz with the clips, in the order of the rows (see `kws.data.index`); `noise.features.npy` with one-second
    pieces of the background noise, if there is any; and manifest.json with settings, words, counts, the normalization
    over the training split, clips and noise left out with the reason, copies, files that are no recordings, matches of
    the split lists, how many speakers are known, speakers in two splits, and the fingerprint.

    Args:
        recordings: a folder in any layout of `kws.data.sources`, with the manifest.json of `kws.download.step` or
            without.
        data_root: where to make `tensors/<fingerprint>/`.
        recipe: determines the features, the split, and the number of clips of unknown words that train.
        words: all, auto or a list; see `kws.config.PipelineConfig`.
        unknown_words: empty, auto or a list. If not empty there are two more classes, each with as many clips as a word
            has on average: unknown words, with the same number of clips of each, and silence, if the recordings have
            noise from which to cut it. A recipe may train on more clips of unknown words.
        max_bad_fraction: largest fraction of unreadable clips, 0 to 1.
        num_threads: number of worker threads; 0: one for every core.
        layout: how the recordings are laid out; see `kws.data.sources.list_recordings`.

    Returns:
        The tensors folder, complete.

    Raises:
        ValueError: words are missing, a split is empty, or too many clips cannot be read.
        UnclearLayout: the recordings can be read in more than one way.
    """
    features, split = recipe.features, recipe.split
    require(0 <= max_bad_fraction <= 1, "max_bad_fraction", "be between 0 and 1", max_bad_fraction)
    require_volume(data_root)
    listing = list_recordings(recordings, layout)
    log.info("found %s%s", listing.describe(), pauses.describe_length(listing))
    listing.report()
    if listing.layout == PAUSES:
        listing = pauses.cut(listing, features.sample_rate)
    chosen = _find_words(listing, words)
    unknown = _find_unknown_words(listing, unknown_words, chosen)
    listing = listing.spelled((*chosen, *unknown))
    clips = listing.clips_of((*chosen, *unknown))
    if split == "random" and any(clip.split for clip in clips):
        log.warning("the splits that the data set states are not used, as --split is random")
    lists = splits.read_lists(listing.lists if split == "speaker" else {}, clips)
    divided = splits.by_speaker(clips, lists) if split == "speaker" else splits.at_random(clips)
    leaks = splits.speakers_in_two_splits(divided)
    if split == "speaker" and leaks["clips"]:
        log.warning(
            "%d speakers of training clips are also in validation or test, with %d clips: accuracy there will "
            "look better than it is for new speakers",
            leaks["speakers"],
            leaks["clips"],
        )
    if unknown:
        divided, chosen = _add_classes(listing, divided, chosen, recipe)
    num_clips = sum(len(some) for some in divided.values())
    for name in SPLITS:
        require(
            len(divided[name]) > 0,
            "split",
            f"leave clips in train, validation and test ({name} gets none of {num_clips}; {_remedy(split, lists)})",
            split,
        )

    source = digest.fingerprint(listing, clips)
    few = split == "random" and splits.are_few(clips)
    speech = listing.speech if recipe.model.scores == "tokens" else ()
    fingerprint = _fingerprint(
        source, recipe, "random, by word" if few else split, chosen, unknown, listing.layout, speech
    )
    folder = data_root / "tensors" / fingerprint

    def build(staging: Path) -> None:
        memory.warn_if_scarce("preprocess")
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "fingerprint": fingerprint,
            "recordings": {"path": str(recordings), "fingerprint": source, "layout": listing.layout},
            "words": list(chosen),
            "unknown_words": list(unknown),
            "split": split,
            "unknown_clips": recipe.unknown_clips,
            "lists": lists.figures,
            "speakers": splits.known_speakers(divided),
            "speakers_in_two_splits": leaks,
            "not_read": listing.figures(),
            "features": dataclasses.asdict(features),
        }
        manifest |= _compute(listing, staging, divided, recipe, chosen, max_bad_fraction, num_threads)
        files.write_json(staging / files.MANIFEST, manifest)

    if files.build_folder(folder, build):
        log.info("preprocessed %d clips of %d words to %s", num_clips, len(chosen), folder)
    else:
        _check_left_out(files.read_json(folder / files.MANIFEST)["left_out"], num_clips, max_bad_fraction)
        log.info("%s is complete: nothing to do", folder)
    return folder


def _remedy(split: str, lists: splits.Lists) -> str:
    """Says what a user can do if a split has no clips."""
    if split == "random":
        return "at least 3 clips of a word are needed"
    if not lists.figures:
        return "with few speakers use --split random"
    said = ", ".join(f"{name} {figures['matched']}" for name, figures in lists.figures.items())
    return f"clips that the lists name: {said}; provide two lists that name clips, or none"


def _find_words(listing: Listing, words: str) -> tuple[str, ...]:
    """Returns the words to tell apart, as the user or else the data set spells them."""
    found = tuple(listing.words)
    wanted = parse_words(words)
    if wanted is None:
        listing.require_readable_words()
        if len(found) < 2:
            there = sorted(printable(path.name) for path in listing.folder.iterdir() if not path.name.startswith("."))
            raise ValueError(
                f"recordings must hold at least two folders <word>/*.wav or be in another layout of docs/data.md, got "
                f"{str(listing.folder)!r} with {', '.join(there[:5]) or 'nothing'}, read as {listing.describe()}"
            )
        return found
    missing = sorted(set(wanted) - set(spelled_as(wanted, found)))
    if missing:
        silent = [
            f"{word}, of which no file can be read (such as {listing.unreadable[word]})"
            for word in missing
            if word in listing.unreadable
        ]
        raise ValueError(
            f"words must be folders with recordings in {listing.folder}, got none for {', '.join(missing)}; there are "
            f"{', '.join(found) or 'none'} (--words auto takes all of them)"
            + (f"; and {'; '.join(silent)}" if silent else "")
        )
    return wanted


def _find_unknown_words(listing: Listing, unknown_words: str, words: Sequence[str]) -> tuple[str, ...]:
    """Returns the words whose clips form the class of unknown words."""
    if not unknown_words:
        return ()
    found = listing.words
    known = {alike(word) for word in words}
    wanted = parse_words(unknown_words, at_least=1)
    if wanted is None:
        wanted = tuple(word for word in found if alike(word) not in known)
        require(len(wanted) > 0, "words", "leave folders for unknown_words auto (name the words)", ",".join(words))
    both = [word for word in wanted if alike(word) in known]
    require(not both, "unknown_words", "be none of the words", ",".join(both))
    missing = sorted(set(wanted) - set(spelled_as(wanted, found)))
    require(not missing, "unknown_words", f"be folders with recordings in {listing.folder}", ",".join(missing))
    return wanted


def _add_classes(
    listing: Listing, divided: Divided, words: Sequence[str], recipe: Recipe
) -> tuple[Divided, tuple[str, ...]]:
    """Keeps the clips of the words, chooses some of the unknown ones, and adds silence.

    Returns:
        The clips by split, and the classes.
    """
    known = {split: [clip for clip in clips if clip.word in words] for split, clips in divided.items()}
    others = {split: [clip for clip in clips if clip.word not in words] for split, clips in divided.items()}
    counts = {split: classes.mean_per_word(clips) for split, clips in known.items()}
    unknown = classes.choose_unknown(others, counts | {"train": recipe.unknown_clips * counts["train"]})
    lengths: dict[str, int] = {}
    for noise in listing.noise:
        # _save_noise reports recordings that cannot be read.
        with contextlib.suppress(ValueError, OSError):
            lengths[noise] = read_waveform(listing.folder / noise, recipe.features.sample_rate).size
    silence = classes.cut_silence(lengths, counts, recipe.features)
    found = {split: [*known[split], *unknown[split], *silence[split]] for split in SPLITS}
    if not all(silence.values()):
        log.warning("there is no class %s: it needs noise recordings of at least 10 s in %s", SILENCE, BACKGROUND_NOISE)
        return {split: [*known[split], *unknown[split]] for split in SPLITS}, (*words, UNKNOWN)
    return found, (*words, UNKNOWN, SILENCE)


def _fingerprint(
    source: str,
    recipe: Recipe,
    split: str,
    words: Sequence[str],
    unknown: Sequence[str],
    layout: str,
    speech: Sequence[Talk],
) -> str:
    settings: dict[str, Any] = {
        "recordings": source,
        "features": dataclasses.asdict(recipe.features),
        "split": split,
        "words": list(words),
        "version": [VERSION, SCHEMA],
    }
    if layout != WORD:
        settings["layout"] = layout
    if unknown:
        settings["unknown_words"] = list(unknown)
        settings["unknown_clips"] = recipe.unknown_clips
    if recipe.model.scores == "tokens":
        settings["speech"] = [[talk.file, talk.speaker, talk.text] for talk in speech]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _compute(
    listing: Listing,
    folder: Path,
    divided: Divided,
    recipe: Recipe,
    words: Sequence[str],
    max_bad_fraction: float,
    num_threads: int,
) -> dict[str, Any]:
    """Fills a tensors folder with arrays, and returns their entries for the manifest."""
    features = recipe.features
    mel_spectrogram(features)  # made before there are threads, of which each would make its own
    tasks: list[_Task] = []
    for split, clips in divided.items():
        array = _array_path(folder, split)
        _create(array, len(clips), features)
        for first in range(0, len(clips), CLIPS_PER_TASK):
            some = clips[first : first + CLIPS_PER_TASK]
            tasks.append(
                _Task(
                    array=array,
                    first_row=first,
                    recordings=listing.folder,
                    clips=some,
                    features=features,
                    statistics=split == "train",
                )
            )

    with workers(min(num_threads or num_cores(), len(tasks))) as run:
        bad: dict[str, dict[int, str]] = {split: {} for split in divided}
        sounds = {split: np.zeros(len(clips), np.uint64) for split, clips in divided.items()}
        total = np.zeros(features.num_mels)
        total_squares = np.zeros(features.num_mels)
        num_clips = sum(len(clips) for clips in divided.values())
        with progress(num_clips, "clips", "preprocess") as bar:
            # In the order of the tasks, so that the sums are reproducible to the last bit.
            for task, done in zip(tasks, run(_fill, tasks), strict=True):
                split = task.array.name.split(".")[0]
                bad[split] |= done.bad
                sounds[split][task.first_row : task.first_row + len(task.clips)] = done.sounds
                total += done.total
                total_squares += done.total_squares
                bar.update(len(task.clips))

        found = copies.find(divided, sounds)
        bad_when_read = {split: set(rows) for split, rows in bad.items()}
        for split, rows in found.contradicting.items():
            bad[split] |= rows
        reasons = {divided[split][row].id: bad[split][row] for split in divided for row in sorted(bad[split])}
        for line in grouped(reasons):
            log.warning("%s", line)
        _check_left_out(reasons, num_clips, max_bad_fraction)
        found.report(divided)
        good: Divided = {}
        for split, clips in divided.items():
            left_out = bad[split].keys() | found.in_other_split[split].keys()
            good[split] = [clip for row, clip in enumerate(clips) if row not in left_out]
            rule = f"leave readable clips in {split} that are no copies of clips of another split"
            require(len(good[split]) > 0, "split", rule, 0)
            unheard = sorted(left_out - bad_when_read[split]) if split == "train" else []
            for row in unheard:  # the sums hold only what stays
                values = np.load(_array_path(folder, split), mmap_mode="r")[row].astype(np.float64)
                total -= values.sum(axis=1)
                total_squares -= np.square(values).sum(axis=1)
            if left_out:
                _drop_rows(_array_path(folder, split), sorted(left_out))
        _check_words(divided, good, reasons)
        Index.of([clip for split in SPLITS for clip in good[split]]).save(folder / INDEX)
        counts = {split: len(clips) for split, clips in good.items()}
        ((counts["noise"], noise_reasons),) = run(_save_noise, [listing], [folder], [features])
        speech_reasons: dict[str, str] = {}
        if recipe.model.scores == "tokens":
            counts["speech_seconds"], speech_reasons = save_speech(listing, folder, features, words, run)

    frames = counts["train"] * features.num_frames
    mean = total / frames
    deviation = np.sqrt(np.maximum(total_squares / frames - mean**2, 1e-12))
    return {
        "counts": counts,
        "normalization": {"mean": mean.tolist(), "std": deviation.tolist()},
        "left_out": reasons,
        "copies": found.figures(divided),
        "noise_left_out": noise_reasons | speech_reasons,
    }


def _check_words(divided: Divided, good: Divided, reasons: Mapping[str, str]) -> None:
    """Refuses clips of which a whole word cannot be read, and warns of words that have no clip to train on."""
    kept = {clip.word for clips in good.values() for clip in clips}
    for clip in (clip for clips in divided.values() for clip in clips if clip.word not in kept):
        reason = reasons.get(clip.id, "it is a copy")
        raise ValueError(
            f"every word must have a clip that can be read, got none of {clip.word} (the first: {printable(clip.id)}: "
            f"{reason}): repair its recordings, or leave it out of --words"
        )
    untrained = sorted(kept - {clip.word for clip in good["train"]})
    if untrained:
        log.warning(
            "no clip is left to train %s on: its speakers are all in validation or test (use --split random)",
            ", ".join(untrained),
        )


def _check_left_out(reasons: Mapping[str, str], num_clips: int, max_bad_fraction: float) -> None:
    if len(reasons) > max_bad_fraction * num_clips:
        raise ValueError(
            f"at most {max_bad_fraction:.2%} of the clips may be unreadable, got {len(reasons)} of {num_clips} "
            f"(repair them, or allow more with --max-bad-fraction):\n  " + "\n  ".join(grouped(reasons))
        )


def grouped(reasons: Mapping[str, str], most: int = 10) -> list[str]:
    """Returns a line for every reason why clips are left out, the most frequent first, and at most `most` lines."""
    clips: dict[str, list[str]] = {}
    for clip, reason in reasons.items():
        clips.setdefault(reason, []).append(printable(clip))
    lines: list[str] = []
    for reason, names in sorted(clips.items(), key=lambda item: -len(item[1])):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        number = "1 clip is" if len(names) == 1 else f"{len(names)} clips are"
        lines.append(f"{number} left out: {reason}: {', '.join(names[:3])}{more}")
    rest = len(lines) - most
    return lines if rest <= 0 else [*lines[:most], f"and clips for {rest} other reasons"]


def _array_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.features.npy"


def _create(path: Path, num_rows: int, features: FeatureConfig) -> None:
    shape = (num_rows, features.num_mels, features.num_frames)
    np.lib.format.open_memmap(path, mode="w+", dtype=features.dtype, shape=shape)


@contextlib.contextmanager
def workers(num_threads: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yields a `map` over worker threads, each of which computes with one thread of torch.

    Threads suffice: reading files, libsndfile and torch release Python's lock, so that two of them are nearly twice as
    fast as one; processes would first have to import torch, which takes as long as thousands of clips. Torch's own
    threads inside an operation gain little on clips this short, and would change the last bits with their number.
    """
    before = torch.get_num_threads()
    with ThreadPoolExecutor(num_threads, "preprocess", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # the workers set it for threads that start later, too


def _fill(task: _Task) -> _Done:
    """Writes the features of a task's clips to their rows, a few clips at a time so that they stay in the cache."""
    spectrogram = mel_spectrogram(task.features)
    array = np.load(task.array, mmap_mode="r")
    bad: dict[int, str] = {}
    sounds = np.zeros(len(task.clips), np.uint64)
    sums = torch.zeros(2, task.features.num_mels, dtype=torch.float64)
    # Rows are written, not memory-mapped: a full disk is then an exception, not a signal that kills the process.
    with task.array.open("r+b") as file, torch.inference_mode():
        file.seek(array.offset + task.first_row * array.strides[0])
        for first in range(0, len(task.clips), BATCH):
            clips = task.clips[first : first + BATCH]
            waveforms = np.zeros((len(clips), task.features.num_samples), np.float32)
            for index, clip in enumerate(clips):
                try:
                    waveforms[index] = read(task.recordings, clip, task.features)
                    if clip.word != SILENCE:
                        require_varied(waveforms[index])
                        sounds[first + index] = copies.digest_of(waveforms[index])
                except (ValueError, OSError) as error:
                    bad[task.first_row + first + index] = str(error)
            values = spectrogram(torch.from_numpy(waveforms))
            file.write(_stored(values, task.features).data)
            if task.statistics:
                good = [index for index in range(len(clips)) if task.first_row + first + index not in bad]
                values = values if len(good) == len(clips) else values[good]
                sums[0] += values.sum((0, 2), dtype=torch.float64)
                sums[1] += values.square().sum((0, 2), dtype=torch.float64)
    return _Done(bad=bad, sounds=sounds, total=sums[0].numpy(), total_squares=sums[1].numpy())


def _stored(values: Tensor, features: FeatureConfig) -> npt.NDArray[Any]:
    """Returns features [clips, num_mels, num_frames] as they are stored, in the type and order of the array."""
    return values.to(getattr(torch, features.dtype)).contiguous().numpy()


def _drop_rows(path: Path, rows: Sequence[int]) -> None:
    """Rewrites an array without some of its rows."""
    kept = np.delete(np.load(path), rows, axis=0)
    np.save(path, kept)


def _save_noise(listing: Listing, folder: Path, features: FeatureConfig) -> tuple[int, dict[str, str]]:
    """Saves the features of one-second pieces of noise recordings.

    Returns:
        The number of pieces, and the recordings that cannot be read, with the reasons.
    """
    pieces: list[npt.NDArray[np.float32]] = []
    reasons: dict[str, str] = {}
    for noise in listing.noise:
        try:
            pieces += noise_pieces(listing.folder / noise, features, held_out=False)
        except (ValueError, OSError) as error:
            reasons[noise] = str(error)
            log.warning("%s is left out: %s", printable(noise), error)
    if not pieces:
        return 0, reasons
    with torch.inference_mode():
        values = mel_spectrogram(features)(torch.from_numpy(np.stack(pieces)))
    np.save(_array_path(folder, "noise"), _stored(values, features))
    return len(pieces), reasons


def noise_pieces(path: Path, features: FeatureConfig, held_out: bool) -> list[npt.NDArray[np.float32]]:
    """Cuts a noise recording into float32 [num_samples] pieces: the held-out ones or those for training."""
    noise = read_waveform(path, features.sample_rate)
    border = int(noise.size * (1 - classes.HELD_OUT_NOISE))
    part = noise[border:] if held_out else noise[:border]
    return [
        part[start : start + features.num_samples]
        for start in range(0, part.size - features.num_samples + 1, features.num_samples)
    ]
