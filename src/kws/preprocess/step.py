"""The preprocess step: converts a recordings folder to tensors, which training maps into memory."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kws import files, memory
from kws.config import BACKGROUND_NOISE, SILENCE, SPLITS, UNKNOWN, parse_words
from kws.cores import num_cores
from kws.data import classes, digest, splits
from kws.data.index import Index
from kws.data.listing import Listing
from kws.data.sources import AUTO, PAUSES, WORD, list_recordings
from kws.data.splits import Divided
from kws.data.words import alike, spelled_as
from kws.preprocess import copies, pauses
from kws.preprocess.audio import read_waveform
from kws.preprocess.features import VERSION, mel_spectrogram
from kws.preprocess.speech import save_speech
from kws.preprocess.store import CLIPS_PER_TASK, SOUNDS, SUMS, Store, stored
from kws.preprocess.tensors import INDEX, NOISE, ROWS, SCHEMA, missing_parts
from kws.recipe import FeatureConfig, Recipe
from kws.settings import require
from kws.text import printable
from kws.volume import require_volume, use

log = logging.getLogger(__name__)

DEFAULT = Recipe()


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
    """Computes the features of all recordings of some words, but for those that were computed before.

    Features lie in the parts of `kws.preprocess.store`. The tensors folder is an index over them: index.npz with the
    clips (see `kws.data.index`), and rows.npy with the row of each, int64 [clips], counted through the parts that
    manifest.json names. It also holds `noise.features.npy` with one-second pieces of the background noise, if there is
    any; and in manifest.json settings, words, counts, the normalization over the training split, clips and noise left
    out with the reason, copies, files that are no recordings, matches of the split lists, how many speakers are known,
    speakers in two splits, and the fingerprint.

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
    require(0 <= max_bad_fraction <= 1, "max_bad_fraction", "be between 0 and 1", max_bad_fraction)
    require_volume(data_root)
    plan = _plan(recordings, recipe, words, unknown_words, layout)
    listing, store = plan.listing, Store(data_root, recipe.features)
    digests = digest.Digests(listing.folder)
    source = digest.fingerprint(listing, plan.chosen, digests)
    fingerprint = plan.fingerprint(source)
    folder = data_root / "tensors" / fingerprint

    def build(staging: Path) -> None:
        memory.warn_if_scarce("preprocess")
        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "fingerprint": fingerprint,
            "recordings": {"path": str(recordings), "fingerprint": source, "layout": listing.layout},
            "words": list(plan.words),
            "unknown_words": list(plan.unknown),
            "split": recipe.split,
            "unknown_clips": recipe.unknown_clips,
            "lists": plan.lists.figures,
            "speakers": splits.known_speakers(plan.divided),
            "speakers_in_two_splits": plan.leaks,
            "not_read": listing.figures(),
            "features": dataclasses.asdict(recipe.features),
        }
        manifest |= _compute(plan, staging, store, digests, max_bad_fraction, num_threads)
        files.write_json(staging / files.MANIFEST, manifest)

    if use(data_root, folder) and (gone := missing_parts(folder)):
        log.warning("%s is made again, as %d parts of its features are gone", folder, len(gone))
        (folder / files.MANIFEST).unlink()
    if files.build_folder(folder, build):
        log.info("preprocessed %d clips of %d words to %s", plan.num_clips, len(plan.words), folder)
    else:
        _check_left_out(files.read_json(folder / files.MANIFEST)["left_out"], plan.num_clips, max_bad_fraction)
        log.info("%s is complete: nothing to do", folder)
    return folder


def compute_shard(
    recordings: Path,
    data_root: Path,
    recipe: Recipe = DEFAULT,
    *,
    shard: int,
    num_shards: int,
    clips_per_shard: int = 100_000,
    words: str = "all",
    unknown_words: str = "",
    num_threads: int = 0,
    layout: str = AUTO,
) -> int:
    """Computes the features of a share of the clips that `preprocess` will need, where there are so many that it pays.

    Shards may run at the same time, on any machines, be killed and be repeated: the parts that are complete stay. What
    a shard does not compute, `preprocess` does.

    Args:
        recordings: see `preprocess`.
        data_root: where `preprocess` will make the tensors.
        recipe: determines the features, and the clips.
        shard: the number of the share, from 0 on.
        num_shards: the most shares into which the clips are divided.
        clips_per_shard: the least clips of a share; where there is only one such share, nothing is done.
        words: see `preprocess`.
        unknown_words: see `preprocess`.
        num_threads: see `preprocess`.
        layout: see `preprocess`.

    Returns:
        The number of clips of the share whose features are there now.

    Raises:
        ValueError: as `preprocess`, but clips that cannot be read are left to it.
    """
    require(0 <= shard < num_shards, "shard", f"be between 0 and {num_shards - 1}", shard)
    require_volume(data_root)
    plan = _plan(recordings, recipe, words, unknown_words, layout)
    num_shards = min(num_shards, plan.num_clips // clips_per_shard)
    if num_shards < 2 or shard >= num_shards:
        log.info("%d clips need no shard %d: nothing to do", plan.num_clips, shard)
        return 0
    first, end = (plan.num_clips * number // num_shards for number in (shard, shard + 1))
    clips = plan.clips()[first:end]
    keys = digest.Digests(plan.listing.folder).keys(clips)
    with workers(num_threads or num_cores()) as run:
        unreadable = Store(data_root, recipe.features).add(plan.listing.folder, clips, keys, run)
    for line in grouped({key.hex(): reason for key, reason in unreadable.items()}):
        log.warning("%s", line)
    return len(clips) - len(unreadable)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The clips of a data set, and how they are divided."""

    recipe: Recipe
    listing: Listing
    chosen: Index
    """All clips of the words and of the unknown words."""
    divided: Divided
    words: tuple[str, ...]
    """The classes."""
    unknown: tuple[str, ...]
    lists: splits.Lists
    leaks: Mapping[str, int]

    @property
    def num_clips(self) -> int:
        return sum(map(len, self.divided.values()))

    def clips(self) -> Index:
        """Returns the clips of all splits."""
        return Index.joined([self.divided[split] for split in SPLITS])

    def fingerprint(self, source: str) -> str:
        """Returns the digest of all that the tensors follow from, given that of the recordings."""
        recipe, is_few = self.recipe, self.recipe.split == "random" and splits.are_few(self.chosen)
        settings: dict[str, Any] = {
            "recordings": source,
            "features": dataclasses.asdict(recipe.features),
            "split": "random, by word" if is_few else recipe.split,
            "words": list(self.words),
            "version": [VERSION, SCHEMA],
        }
        if self.listing.layout != WORD:
            settings["layout"] = self.listing.layout
        if self.unknown:
            settings["unknown_words"] = list(self.unknown)
            settings["unknown_clips"] = recipe.unknown_clips
        if recipe.model.scores == "tokens":
            settings["speech"] = [[talk.file, talk.speaker, talk.text] for talk in self.listing.speech]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _plan(recordings: Path, recipe: Recipe, words: str, unknown_words: str, layout: str) -> _Plan:
    """Finds the clips and divides them; see `preprocess`."""
    split = recipe.split
    listing = list_recordings(recordings, layout)
    log.info("found %s%s", listing.describe(), pauses.describe_length(listing))
    listing.report()
    if listing.layout == PAUSES:
        listing = pauses.cut(listing, recipe.features.sample_rate)
    chosen = _find_words(listing, words)
    unknown = _find_unknown_words(listing, unknown_words, chosen)
    listing = listing.spelled((*chosen, *unknown))
    clips = listing.clips.of_words((*chosen, *unknown))
    if split == "random" and clips.counts("split").keys() - {""}:
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
    return _Plan(
        recipe=recipe,
        listing=listing,
        chosen=clips,
        divided=divided,
        words=chosen,
        unknown=unknown,
        lists=lists,
        leaks=leaks,
    )


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
    known = {split: clips.of_words(words) for split, clips in divided.items()}
    others = {split: clips.of_words(clips.counts().keys() - set(words)) for split, clips in divided.items()}
    counts = {split: classes.mean_per_word(clips) for split, clips in known.items()}
    unknown = classes.choose_unknown(others, counts | {"train": recipe.unknown_clips * counts["train"]})
    lengths: dict[str, int] = {}
    for noise in listing.noise:
        # _save_noise reports recordings that cannot be read.
        with contextlib.suppress(ValueError, OSError):
            lengths[noise] = read_waveform(listing.folder / noise, recipe.features.sample_rate).size
    silence = classes.cut_silence(lengths, counts, recipe.features)
    if not all(map(len, silence.values())):
        log.warning("there is no class %s: it needs noise recordings of at least 10 s in %s", SILENCE, BACKGROUND_NOISE)
        return {split: Index.joined([known[split], unknown[split]]) for split in SPLITS}, (*words, UNKNOWN)
    found = {split: Index.joined([known[split], unknown[split], silence[split]]) for split in SPLITS}
    return found, (*words, UNKNOWN, SILENCE)


def _compute(
    plan: _Plan, folder: Path, store: Store, digests: digest.Digests, max_bad_fraction: float, num_threads: int
) -> dict[str, Any]:
    """Fills a tensors folder with its index, and returns its entries for the manifest."""
    listing, divided, features = plan.listing, plan.divided, plan.recipe.features
    clips = plan.clips()
    with workers(min(num_threads or num_cores(), math.ceil(len(clips) / CLIPS_PER_TASK))) as run:
        keys = digests.keys(clips)
        unreadable = store.add(listing.folder, clips, keys, run)
        found = store.find(keys)
        ends = np.cumsum([len(divided[split]) for split in SPLITS])[:-1]
        rows = dict(zip(SPLITS, np.split(found.rows, ends), strict=True))
        sounds = dict(zip(SPLITS, np.split(found.take(SOUNDS), ends), strict=True))
        of_split = dict(zip(SPLITS, np.split(keys, ends), strict=True))
        bad = {
            split: {row: unreadable[of_split[split][row].tobytes()] for row in np.flatnonzero(some < 0).tolist()}
            for split, some in rows.items()
        }

        same = copies.find(divided, sounds)
        for split, contradicting in same.contradicting.items():
            bad[split] |= contradicting
        reasons = {divided[split][row].id: bad[split][row] for split in SPLITS for row in sorted(bad[split])}
        for line in grouped(reasons):
            log.warning("%s", line)
        _check_left_out(reasons, len(clips), max_bad_fraction)
        same.report(divided)
        good: Divided = {}
        for split, some in divided.items():
            left_out = bad[split].keys() | same.in_other_split[split].keys()
            kept = np.delete(np.arange(len(some)), sorted(left_out))
            good[split], rows[split] = some.take(kept), rows[split][kept]
            rule = f"leave readable clips in {split} that are no copies of clips of another split"
            require(len(good[split]) > 0, "split", rule, 0)
        _check_words(divided, good, reasons)
        Index.joined([good[split] for split in SPLITS]).save(folder / INDEX)
        np.save(folder / ROWS, np.concatenate([rows[split] for split in SPLITS]))
        counts = {split: len(some) for split, some in good.items()}
        ((counts["noise"], noise_reasons),) = run(_save_noise, [listing], [folder], [features])
        speech_reasons: dict[str, str] = {}
        if plan.recipe.model.scores == "tokens":
            counts["speech_seconds"], speech_reasons = save_speech(listing, folder, features, plan.words, run)

    total, total_squares = dataclasses.replace(found, rows=rows["train"]).total(SUMS)
    frames = counts["train"] * features.num_frames
    mean = total / frames
    deviation = np.sqrt(np.maximum(total_squares / frames - mean**2, 1e-12))
    return {
        "parts": {str(part.relative_to(store.folder.parent)): size for part, size in found.parts.items()},
        "counts": counts,
        "normalization": {"mean": mean.tolist(), "std": deviation.tolist()},
        "left_out": reasons,
        "copies": same.figures(divided),
        "noise_left_out": noise_reasons | speech_reasons,
    }


def _check_words(divided: Divided, good: Divided, reasons: Mapping[str, str]) -> None:
    """Refuses clips of which a whole word cannot be read, and warns of words that have no clip to train on."""
    kept = {word for clips in good.values() for word in clips.counts()}
    lost = (clips.of_words(clips.counts().keys() - kept) for clips in divided.values())
    for clip in itertools.chain.from_iterable(lost):
        reason = reasons.get(clip.id, "it is a copy")
        raise ValueError(
            f"every word must have a clip that can be read, got none of {clip.word} (the first: {printable(clip.id)}: "
            f"{reason}): repair its recordings, or leave it out of --words"
        )
    untrained = sorted(kept - good["train"].counts().keys())
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
    np.save(folder / NOISE, stored(values, features))
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
