"""Every layout in which people have recordings, made of real clips: what is read, with which speakers and splits."""

import csv
import json
import logging
import shutil
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import soundfile

from kws import files
from kws.data import splits
from kws.data.clip import Clip
from kws.data.index import Index
from kws.data.layouts.rows import UnclearLayout
from kws.data.listing import Listing
from kws.data.sources import list_recordings, unwrapped
from kws.download.step import download
from kws.preprocess.audio import read, read_waveform
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.recipe import FeatureConfig, Recipe

REAL = Path(__file__).parents[2] / "data" / "speech_commands"
FEATURES = FeatureConfig()


def real(word: str) -> list[Path]:
    """Real clips of a word, of which the first ten are used."""
    return sorted((REAL / word).glob("*.wav"))[:10]


def place(target: Path, source: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def table(path: Path, rows: Iterable[Mapping[str, object]], mark: str = ",") -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(rows)


def lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def said(listing: Listing) -> set[tuple[str, str, str, str]]:
    """Returns what a listing says of each clip."""
    return {(clip.id, clip.word, clip.speaker, clip.split) for clip in listing.clips}


def counts(listing: Listing) -> dict[str, int]:
    return listing.clips.counts()


SPLITS = ["train"] * 6 + ["validation"] * 2 + ["test"] * 2


def flat(folder: Path, below: str = "clips") -> list[dict[str, str]]:
    """Places ten real clips of two words in one folder; returns file, word, speaker and split of each."""
    rows = []
    for word in ("yes", "left"):
        for number, (source, split) in enumerate(zip(real(word), SPLITS, strict=True)):
            file = f"{below}/{word[0]}{number}.wav" if below else f"{word[0]}{number}.wav"
            place(folder / file, source)
            rows.append({"file": file, "word": word, "speaker": f"{split}{number % 3}", "split": split})
    return rows


@pytest.mark.parametrize(
    ("name", "file", "word", "speaker", "split"),
    [
        ("metadata.csv", "file_name", "label", "speaker", "split"),
        ("list.tsv", "path", "sentence", "client_id", "SET"),
        ("manifest.jsonl", "audio_filepath", "text", "speaker", "set"),
        ("manifest.json", "audio_filepath", "command", "speaker_id", "partition"),
        ("all.csv", "Filename", "Word", "Speaker ID", "Subset"),
        ("all.parquet", "audio", "keyword", "user_id", "split"),
        ("semicolon.csv", "wav_filename", "transcript", "spk", "split"),
    ],
)
def test_list_says_word_speaker_and_split_under_the_names_of_the_field(
    tmp_path: Path, name: str, file: str, word: str, speaker: str, split: str
) -> None:
    rows = flat(tmp_path)
    named = [{file: row["file"], word: row["word"], speaker: row["speaker"], split: row["split"]} for row in rows]
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(named), tmp_path / name)
    elif "json" in name:
        lines(tmp_path / name, named)
    else:
        table(tmp_path / name, named, {"list.tsv": "\t", "semicolon.csv": ";"}.get(name, ","))
    listing = list_recordings(tmp_path)
    assert listing.layout == "list"
    assert said(listing) == {(row["file"], row["word"], row["speaker"], row["split"]) for row in rows}
    assert listing.not_read == {}
    assert name in listing.files_of(listing.clips[:0])


@pytest.mark.parametrize("mark", [",", "\t", "|", ";"])
def test_list_without_a_header_is_file_and_word(tmp_path: Path, mark: str) -> None:
    rows = flat(tmp_path, below="")
    (tmp_path / "labels.txt").write_text("".join(f"{row['file']}{mark}{row['word']}\n" for row in rows))
    assert counts(list_recordings(tmp_path)) == {"left": 10, "yes": 10}


def test_paths_of_another_machine_other_suffixes_and_case_are_found(tmp_path: Path) -> None:
    rows = flat(tmp_path, below="Clips")
    spelled = ["/mnt/data/{}", "C:\\data\\{}", "clips/{}", "{}", "./Clips/{}"]
    table(
        tmp_path / "list.csv",
        [
            {
                "path": spelled[i % 5].format(row["file"].split("/")[1].replace(".wav", ".mp3" if i % 2 else "")),
                "word": row["word"],
            }
            for i, row in enumerate(rows)
        ],
    )
    assert counts(list_recordings(tmp_path)) == {"left": 10, "yes": 10}


def test_file_that_a_list_names_in_another_folder_is_not_taken_for_one_of_the_same_name(tmp_path: Path) -> None:
    place(tmp_path / "yes" / "1.wav", real("yes")[0])
    place(tmp_path / "left" / "2.wav", real("left")[0])
    table(tmp_path / "list.csv", [{"path": f"{path}.wav", "word": path[:-2]} for path in ("yes/1", "left/1", "left/2")])
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 1, "yes": 1}
    assert listing.left_out == {"there are no such recordings below the folder": 1}


def test_list_cannot_name_files_outside_of_its_folder(tmp_path: Path) -> None:
    place(tmp_path / "secret.wav", real("yes")[0])
    flat(tmp_path / "data")
    table(tmp_path / "data" / "list.csv", [{"path": "../secret.wav", "word": "yes"}, {"path": "y0.wav", "word": "yes"}])
    assert list_recordings(tmp_path / "data").left_out == {"there are no such recordings below the folder": 1}


def test_words_are_cut_out_of_long_recordings_as_offset_and_duration_say(tmp_path: Path) -> None:
    """NeMo's manifest, with offsets."""
    clips = [read_waveform(path, 16_000) for path in real("yes")]
    soundfile.write(
        tmp_path / "long.flac", np.concatenate([np.pad(clip, (0, 16_000 - clip.size)) for clip in clips]), 16_000
    )
    lines(
        tmp_path / "train_manifest.json",
        [
            {"audio_filepath": "long.flac", "offset": float(i), "duration": 1.0, "text": "yes" if i < 6 else "left"}
            for i in range(10)
        ],
    )
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 4, "yes": 6}
    assert {clip.split for clip in listing.clips.of_words(["yes"])} == {"train"}
    assert {clip.group for clip in listing.clips.of_words(["yes"])} == {"long.wav"}  # all of them in one split
    for clip, expected in zip(listing.clips, clips, strict=True):
        assert clip.id == "long.flac@{}-{}s".format(*clip.stretch or ())
        np.testing.assert_allclose(read(tmp_path, clip, FEATURES)[: expected.size], expected, atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 44_100])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_stretch_of_a_recording_of_any_format_and_rate_is_where_it_should_be(
    tmp_path: Path, rate: int, suffix: str
) -> None:
    time = np.arange(12 * rate) / rate
    beeps = 0.5 * np.sin(2 * np.pi * 440 * time) * ((time % 2 >= 1) & (time % 2 < 1.5))
    soundfile.write(tmp_path / f"beeps.{suffix}", beeps, rate)
    clip = Clip(file=f"beeps.{suffix}", word="beep", stretch=(9.0, 9.5))
    heard = read(tmp_path, clip, FEATURES)
    assert heard.shape == (16_000,)
    half = np.sqrt(np.mean(heard[4000:12_000] ** 2))
    assert half == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert np.abs(np.concatenate((heard[:4000], heard[12_000:]))).max() == 0  # padded like a short recording


def test_json_may_name_the_files_of_each_word(tmp_path: Path) -> None:
    rows = flat(tmp_path)
    of_words = {word: [row["file"] for row in rows if row["word"] == word] for word in ("yes", "left")}
    (tmp_path / "words.json").write_text(json.dumps(of_words))
    assert said(list_recordings(tmp_path)) == {(row["file"], row["word"], "", "") for row in rows}


@pytest.mark.parametrize("below", ["", "clips"])
def test_spreadsheet_beside_recordings_is_to_be_saved_as_csv(tmp_path: Path, below: str) -> None:
    flat(tmp_path, below)
    (tmp_path / "Labels.xlsx").write_bytes(b"PK")
    with pytest.raises(UnclearLayout, match=r"got Labels\.xlsx: save it as CSV"):
        list_recordings(tmp_path)


@pytest.mark.parametrize("around", ["words", "kaggle/train/audio"])
def test_folders_around_the_words_are_passed_as_in_archives(tmp_path: Path, around: str) -> None:
    outer = tmp_path / around.split("/")[0]
    for word in ("yes", "left"):
        for source in real(word):
            place(tmp_path / around / word / source.name, source)
    (outer / "LICENSE").write_text("of the recordings")
    assert unwrapped(outer) == tmp_path / around
    assert unwrapped(tmp_path / around) == tmp_path / around
    assert len(list_recordings(download(str(outer), "", tmp_path / "data")).clips) == 20
    (outer / "_background_noise_").mkdir()
    assert unwrapped(outer) == outer  # as the noise would be lost
    (outer / "_background_noise_").rmdir()
    (tmp_path / around / "yes").rename(outer / "yes")
    assert unwrapped(outer) == outer


def test_stretch_beyond_the_end_is_refused(tmp_path: Path) -> None:
    place(tmp_path / "a.wav", real("yes")[0])
    with pytest.raises(ValueError, match=r"beyond its end: take the columns of begin and end out"):
        read(tmp_path, Clip(file="a.wav", word="yes", stretch=(8.0, 9.0)), FEATURES)


def test_hugging_face_audiofolder_with_metadata_in_every_split(tmp_path: Path) -> None:
    for split, some in (("train", slice(0, 7)), ("test", slice(7, 10))):
        for word in ("yes", "left"):
            for number, source in enumerate(real(word)[some]):
                place(tmp_path / split / f"{word}{number}.wav", source)
        table(
            tmp_path / split / "metadata.csv",
            [{"file_name": path.name, "label": path.name[:-5]} for path in sorted((tmp_path / split).glob("*.wav"))],
        )
    listing = list_recordings(tmp_path)
    assert listing.layout == "list"
    assert Counter((clip.word, clip.split) for clip in listing.clips) == {
        ("yes", "train"): 7,
        ("left", "train"): 7,
        ("yes", "test"): 3,
        ("left", "test"): 3,
    }


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Validation", "Testing"), ("train", "dev", "test")])
def test_split_folders_over_word_folders_are_splits(tmp_path: Path, names: Sequence[str]) -> None:
    for word in ("yes", "left"):
        for number, source in enumerate(real(word)):
            place(tmp_path / names[max(0, number + len(names) - 10)] / word / source.name, source)
    place(tmp_path / "_background_noise_" / "tap.wav", REAL / "_background_noise_" / "running_tap.wav")
    listing = list_recordings(tmp_path)
    assert listing.layout == "split/word"
    assert counts(listing) == {"left": 10, "yes": 10}
    expected = {"train", "test"} if len(names) == 2 else {"train", "validation", "test"}
    assert {clip.split for clip in listing.clips.of_words(["yes"])} == expected
    assert listing.noise == ["_background_noise_/tap.wav"]
    assert all(clip.speaker for clip in listing.clips.of_words(["yes"]))  # their names have it


def test_split_folders_of_which_nothing_tells_the_words_are_refused_and_the_flag_settles_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for source in real("yes")[:3]:
            place(tmp_path / split / source.name, source)
    with pytest.raises(UnclearLayout, match=r"got the folders test, train, .* add metadata.csv .* use --layout word\)"):
        list_recordings(tmp_path)
    assert counts(list_recordings(tmp_path, "word")) == {"test": 3, "train": 3}


@pytest.mark.parametrize("speakers", [("speaker1", "speaker2"), ("0a7c2a8d", "f00ba411"), ("anna", "bob")])
@pytest.mark.parametrize("layout", ["word/speaker", "speaker/word", "split/speaker/word"])
def test_speaker_folders_and_word_folders_in_either_order(tmp_path: Path, speakers: Sequence[str], layout: str) -> None:
    for word in ("yes", "left"):
        for number, source in enumerate(real(word)[:4]):
            speaker = speakers[number % 2]
            names = {"word": word, "speaker": speaker, "split": "train" if number % 2 else "test"}
            place(tmp_path.joinpath(*(names[level] for level in layout.split("/")), f"{number}.wav"), source)
    listing = list_recordings(tmp_path)
    assert listing.layout == layout
    assert counts(listing) == {"left": 4, "yes": 4}
    assert {clip.speaker for clip in listing.clips.of_words(["left"])} == set(speakers)


def test_levels_of_folders_that_do_not_tell_words_from_speakers_are_refused(tmp_path: Path) -> None:
    for speaker in ("anna", "bob"):
        for word in ("ja", "nein"):
            place(tmp_path / speaker / word / "1.wav", real("yes")[0])
    with pytest.raises(UnclearLayout, match="use --layout word/speaker or --layout speaker/word"):
        list_recordings(tmp_path)
    assert counts(list_recordings(tmp_path, "speaker/word")) == {"ja": 2, "nein": 2}
    assert counts(list_recordings(tmp_path, "word/speaker")) == {"anna": 2, "bob": 2}


def shard(path: Path, sources: Sequence[tuple[Path, str]], split: str = "", *, classes: bool = True) -> None:
    """Writes recordings as Hugging Face's datasets do, two in a group of rows: as Parquet, or by save_to_disk."""
    names = ["left", "yes"]
    audio = [{"bytes": source.read_bytes(), "path": source.name} for source, _ in sources]
    columns = {
        "audio": pyarrow.array(audio, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
        "label": pyarrow.array([names.index(word) if classes else word for _, word in sources]),
        "speaker_id": pyarrow.array([source.name.split("_")[0] for source, _ in sources]),
    }
    features = {"audio": {"_type": "Audio"}, "label": {"names": names, "_type": "ClassLabel"}}
    written = pyarrow.table(columns)
    if classes:
        written = written.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(written, path, row_group_size=2)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(written, path, chunksize=2)
    else:
        with pyarrow.ipc.new_stream(path, written.schema) as file:
            file.write_table(written, max_chunksize=2)
        (path.parent / "cache-1.arrow").write_bytes(path.read_bytes())
        (path.parent / "state.json").write_text(json.dumps({"_data_files": [{"filename": path.name}]}))


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("data/{}-00000-of-00001.parquet", True),
        ("data/{}-00000-of-00001.parquet", False),
        ("{}/data-00000-of-00001.arrow", True),
        ("data/{}.feather", True),
    ],
)
def test_a_file_holds_the_recordings_and_numbers_of_classes_have_their_names(
    tmp_path: Path, name: str, classes: bool
) -> None:
    for split, some in (("train", slice(0, 7)), ("test", slice(7, 10))):
        sources = [(path, word) for word in ("yes", "left") for path in real(word)[some]]
        shard(tmp_path / name.format(split), sources, classes=classes)
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 10, "yes": 10}
    clips = listing.clips
    assert Counter(clip.split for clip in clips) == {"train": 14, "test": 6}
    for clip in clips:
        source = next(
            path
            for path in real(clip.word)
            if np.array_equal(
                read(path.parent, Clip(file=path.name, word=""), FEATURES), read(tmp_path, clip, FEATURES)
            )
        )
        assert source.name.startswith(f"{clip.speaker}_")
    assert [clip.id for clip in clips[:1]] == [f"{name.format('test')}#0000000"]
    assert listing.files_of(clips).tolist() == [name.format(split) for split in ("test", "train")]


def test_common_voice_gives_the_sentences_of_one_word_in_its_own_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = flat(tmp_path / "cv" / "en")

    def entry(row: Mapping[str, str], sentence: str) -> dict[str, str]:
        return {"client_id": row["speaker"], "path": row["file"].split("/")[1], "sentence": sentence, "up_votes": "2"}

    sentences = {"yes": "Yes.", "left": "“Left!”"}
    of_split = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"}
    for split, name in of_split.items():
        some = [entry(row, sentences[row["word"]]) for row in rows if row["split"] == split]
        table(tmp_path / "cv" / "en" / name, some, "\t")
    table(tmp_path / "cv" / "en" / "validated.tsv", [entry(row, sentences[row["word"]]) for row in rows], "\t")
    table(tmp_path / "cv" / "en" / "other.tsv", [entry(rows[0], "Maybe")], "\t")
    place(tmp_path / "cv" / "en" / "clips" / "long.wav", real("yes")[0])
    long = {"client_id": "train0", "path": "long.wav", "sentence": 'He said "yes" and left.', "up_votes": "2"}
    with (tmp_path / "cv" / "en" / "train.tsv").open("a", newline="") as file:
        csv.DictWriter(file, list(long), delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None).writerow(long)
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"Left": 10, "Yes": 10}
    assert {(clip.file.split("/")[-1], clip.speaker, clip.split) for clip in listing.clips} == {
        (row["file"].split("/")[1], row["speaker"], row["split"]) for row in rows
    }
    listing.report()
    assert "1 entries of the lists not read, as they are sentences of several words" in caplog.text


def test_multilingual_spoken_words_has_its_splits_and_speakers_in_one_list(tmp_path: Path) -> None:
    rows = []
    for word in ("yes", "left"):
        for number, (source, split) in enumerate(zip(real(word), SPLITS, strict=True)):
            link = f"{word}/common_voice_en_{number}.ogg"
            (tmp_path / "clips" / word).mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / "clips" / link, *soundfile.read(source), format="OGG", subtype="OPUS")
            rows.append(
                {
                    "SET": {"validation": "DEV"}.get(split, split.upper()),
                    "LINK": link.replace(".ogg", ".opus"),
                    "WORD": word,
                }
                | {"VALID": "False" if number == 0 else "True", "SPEAKER": f"{split}{number}", "GENDER": "NAN"}
            )
    table(tmp_path / "en_splits.csv", rows)
    table(
        tmp_path / "en_dev.csv",
        [{name: row[name] for name in row if name != "SET"} for row in rows if row["SET"] == "DEV"],
    )
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 9, "yes": 9}
    assert Counter(clip.split for clip in listing.clips.of_words(["yes"])) == {"train": 5, "validation": 2, "test": 2}
    assert len({clip.speaker for clip in listing.clips.of_words(["yes"])}) == 9
    assert listing.left_out == {"they are marked as not valid": 2}


def kaldi(folder: Path, *, pipe: bool = False) -> None:
    long = np.concatenate([np.pad(read_waveform(path, 16_000), (0, 8000)) for path in real("yes")[:2]])
    place(folder / "wav" / "u1.wav", real("left")[0])
    soundfile.write(folder / "wav" / "rec2.wav", long, 16_000)
    data = folder / "data" / "train"
    data.mkdir(parents=True)
    sox = "sph2pipe -f wav wav/u1.sph |" if pipe else "wav/u1.wav"
    (data / "wav.scp").write_text(f"rec1 {sox}\nrec2 /export/corpus/wav/rec2.wav\n")
    (data / "segments").write_text("utt1 rec1 0.0 0.9\nutt2 rec2 0.0 1.0\nutt3 rec2 1.5 2.5\nutt4 rec2 0 2.5\n")
    (data / "text").write_text("utt1 left\nutt2 yes\nutt3 yes\nutt4 yes yes\n")
    (data / "utt2spk").write_text("utt1 ann\nutt2 bob\nutt3 bob\nutt4 bob\n")


def test_kaldi_has_segments_speakers_and_the_split_in_the_name_of_its_folder(tmp_path: Path) -> None:
    kaldi(tmp_path)
    listing = list_recordings(tmp_path)
    assert said(listing) == {
        ("wav/u1.wav@0.0-0.9s", "left", "ann", "train"),
        ("wav/rec2.wav@0.0-1.0s", "yes", "bob", "train"),
        ("wav/rec2.wav@1.5-2.5s", "yes", "bob", "train"),
    }
    assert listing.left_out == {"they are sentences of several words": 1}


def test_commands_in_kaldis_wav_scp_are_refused_with_the_remedy(tmp_path: Path) -> None:
    kaldi(tmp_path, pipe=True)
    with pytest.raises(ValueError, match=r"wav.scp must name files, got the command 'sph2pipe .* to write WAV files"):
        list_recordings(tmp_path)


@pytest.mark.parametrize("info", [True, False])
def test_edge_impulse_has_labels_in_names_or_in_info_labels(tmp_path: Path, info: bool) -> None:
    entries = []
    for word in ("yes", "left"):
        for number, source in enumerate(real(word)):
            category = "training" if number < 8 else "testing"
            path = f"{category}/{'sample' if info else word}.s{word[0]}{number:02}.wav"
            place(tmp_path / path, source)
            entries.append({"path": path, "category": category, "label": {"type": "label", "label": word}})
    if info:
        (tmp_path / "info.labels").write_text(json.dumps({"version": 1, "files": entries}))
    listing = list_recordings(tmp_path)
    assert listing.layout == "edge-impulse"
    assert counts(listing) == {"left": 10, "yes": 10}
    assert Counter(clip.split for clip in listing.clips.of_words(["yes"])) == {"train": 8, "test": 2}


def test_edge_impulse_exports_labels_three_times_and_sound_as_json(tmp_path: Path) -> None:
    entries = []
    for word in ("yes", "left"):
        for number, source in enumerate(real(word)):
            category = "training" if number < 8 else "testing"
            path = f"{category}/{word}.5b78bfb{number}.ingestion-79fcbd8479-zs9xd.s{number}.json"
            samples = soundfile.read(source, dtype="int16")[0]
            payload = {"device_name": "phone_lf500n4u", "device_type": "MOBILE_CLIENT", "interval_ms": 0.0625}
            payload |= {"sensors": [{"name": "audio", "units": "wav"}], "values": samples.tolist()}
            signed = {"protected": {"ver": "v1", "alg": "HS256", "iat": 0}, "signature": "0", "payload": payload}
            place(tmp_path / path, source).write_text(json.dumps(signed, separators=(",", ":")))
            entries.append({"path": path, "category": category, "label": {"type": "label", "label": word}})
    (tmp_path / "info.labels").write_text(json.dumps({"version": 1, "files": entries}))
    for category in ("training", "testing"):
        inner = [
            one | {"path": str(one["path"]).rpartition("/")[2], "boundingBoxes": []}
            for one in entries
            if one["category"] == category
        ]
        (tmp_path / category / "info.labels").write_text(json.dumps({"version": 1, "files": inner}))
    listing = list_recordings(tmp_path)
    assert listing.layout == "edge-impulse"
    assert counts(listing) == {"left": 10, "yes": 10}
    assert Counter(clip.split for clip in listing.clips.of_words(["yes"])) == {"train": 8, "test": 2}
    assert not listing.not_read
    (clip,) = (clip for clip in listing.clips.of_words(["yes"]) if clip.file.endswith(".s3.json"))
    np.testing.assert_array_equal(
        read_waveform(tmp_path / clip.file, 16_000), soundfile.read(real("yes")[3], dtype="float32")[0]
    )


@pytest.mark.parametrize("structured", [False, True])
def test_labels_of_stretches_of_edge_impulse_cut_the_recording(tmp_path: Path, structured: bool) -> None:
    place(tmp_path / "training" / "long.wav", REAL / "_background_noise_" / "running_tap.wav")
    stretches = [
        {"label": "yes", "startIndex": 0, "endIndex": 999},
        {"label": "left", "startIndex": 1000, "endIndex": 1799},
    ]
    if structured:
        labels = {"version": 1, "type": "structured-labels", "structuredLabels": {"long.wav": stretches}}
        (tmp_path / "training" / "structured_labels.labels").write_text(json.dumps(labels))
    else:
        entry = {"path": "long.wav", "category": "training", "label": {"type": "multi-label", "labels": stretches}}
        (tmp_path / "training" / "info.labels").write_text(json.dumps({"version": 1, "files": [entry]}))
    assert said(list_recordings(tmp_path)) == {
        ("training/long.wav@0.0-1.0s", "yes", "", "train"),
        ("training/long.wav@1.0-1.8s", "left", "", "train"),
    }


def test_classes_of_teachable_machine_are_cut_out_of_their_recordings(tmp_path: Path) -> None:
    for word in ("yes", "left", "Background Noise"):
        place(tmp_path / word / "sample-1.webm", REAL / "_background_noise_" / "running_tap.wav")
        samples = [
            {
                "frequencyFrames": [[-90.1] * 232] * 43,
                "blob": None,
                "blobFilePath": "sample-1.webm",
                "startTime": number,
                "endTime": number + 1,
                "recordingDuration": 2,
            }
            for number in range(2)
        ]
        (tmp_path / word / "samples.json").write_text(json.dumps(samples))
    listing = list_recordings(tmp_path)
    assert listing.layout == "teachable-machine"
    assert said(listing) == {
        (f"{word}/sample-1.webm@{number}.0-{number + 1}.0s", word, "", "")
        for word in ("yes", "left")
        for number in (0, 1)
    }
    assert listing.noise == ["Background Noise/sample-1.webm"]


@pytest.mark.parametrize("suffix", [".webm", ""])
def test_files_of_a_project_of_teachable_machine_have_their_class_in_the_name(tmp_path: Path, suffix: str) -> None:
    for word in ("yes", "left", "Background Noise"):
        for number, source in enumerate(real("yes" if word.startswith("B") else word)):
            place(tmp_path / f"{word}-!-{number}{suffix}", source)
    (tmp_path / "manifest.json").write_text('{"type": "audio"}')
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 10, "yes": 10}
    assert len(listing.noise) == 10


@pytest.mark.parametrize("name", ["session.txt", "Label Track.txt"])
def test_label_track_of_audacity_cuts_the_recording_beside_it(tmp_path: Path, name: str) -> None:
    place(tmp_path / "session.wav", REAL / "_background_noise_" / "running_tap.wav")
    labels = "0.500000\t1.300000\tyes\n\\\t100.0\t2000.0\n2,000000\t2,750000\tleft\n3.000000\t3.000000\tmark\n"
    (tmp_path / name).write_text(labels)
    listing = list_recordings(tmp_path)
    assert listing.layout == "label-tracks"
    assert said(listing) == {("session.wav@0.5-1.3s", "yes", "", ""), ("session.wav@2.0-2.75s", "left", "", "")}
    assert listing.left_out == {"they end before they begin": 1}


def test_recording_of_a_repeated_word_is_cut_at_its_pauses_on_request(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for word in ("yes", "left"):
        pieces = []
        heard = [path for path in real(word) if np.ptp(read_waveform(path, 16_000)) > 0.2]
        for path in heard:
            waveform = read_waveform(path, 16_000)
            pieces += [waveform / np.ptp(waveform), np.zeros(8000, np.float32)]
        (tmp_path / word).mkdir()
        long = np.concatenate(pieces)
        soundfile.write(tmp_path / word / "all.wav", long + 1e-4 * random.standard_normal(long.size), 16_000)
    data_root = tmp_path / "data"
    folder = preprocess(tmp_path, data_root, Recipe(split="random"), words="auto", layout="pauses", num_threads=1)
    manifest = files.read_json(folder / files.MANIFEST)
    assert manifest["recordings"]["layout"] == "pauses"
    assert 15 <= sum(manifest["counts"][split] for split in ("train", "validation", "test")) <= 26
    clip = Tensors(folder).split("train").clips[0]
    assert clip.stretch is not None
    assert clip.stretch[1] - clip.stretch[0] < 1.3


def test_list_that_names_few_of_the_recordings_in_word_folders_is_unclear(tmp_path: Path) -> None:
    for word in ("yes", "left"):
        for source in real(word):
            place(tmp_path / word / source.name, source)
    table(tmp_path / "favourites.csv", [{"file": f"yes/{real('yes')[0].name}", "label": "yes"}])
    with pytest.raises(UnclearLayout, match=r"1 of 20, .* use --layout list .* or --layout word"):
        list_recordings(tmp_path)
    assert counts(list_recordings(tmp_path, "word")) == {"left": 10, "yes": 10}
    assert counts(list_recordings(tmp_path, "list")) == {"yes": 1}


def test_list_of_speakers_beside_word_folders_adds_what_it_says(tmp_path: Path) -> None:
    rows = []
    for word in ("yes", "left"):
        for number, source in enumerate(real(word)):
            place(tmp_path / word / f"{number}.wav", source)
            rows.append({"path": f"{word}/{number}.wav", "speaker": f"s{number}"})
    table(tmp_path / "speakers.csv", rows)
    listing = list_recordings(tmp_path)
    assert {clip.speaker for clip in listing.clips.of_words(["left"])} == {f"s{number}" for number in range(10)}


@pytest.mark.parametrize("name", ["README.csv", "notes.txt", "stats.json", "words.jsonl"])
def test_other_tables_beside_word_folders_are_no_lists(tmp_path: Path, name: str) -> None:
    place(tmp_path / "yes" / "1.wav", real("yes")[0])
    place(tmp_path / "left" / "1.wav", real("left")[0])
    (tmp_path / name).write_text('{"word": "yes", "count": 3}\n' if "json" in name else "word,count\nyes,3\n")
    assert list_recordings(tmp_path).layout == "word"


def test_recording_with_two_words_is_refused(tmp_path: Path) -> None:
    rows = flat(tmp_path)
    table(tmp_path / "a.csv", [{"path": row["file"], "word": row["word"]} for row in rows])
    table(tmp_path / "b.csv", [{"path": rows[0]["file"], "word": "left"}])
    with pytest.raises(
        ValueError, match=r"must be of one word, got clips/y0.wav, which a.csv, b.csv call yes and left"
    ):
        list_recordings(tmp_path)


def test_list_without_a_recording_is_refused_with_the_reason_and_the_flag(tmp_path: Path) -> None:
    flat(tmp_path)
    table(tmp_path / "list.csv", [{"path": "gone.wav", "word": "yes"}])
    with pytest.raises(
        UnclearLayout, match=r"got list.csv: 1 rows are not read, as there are no such .* --layout word"
    ):
        list_recordings(tmp_path)


def test_unknown_layout_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layout must be auto, word, pauses, kaldi, .* speaker/word, got 'words'"):
        list_recordings(tmp_path, "words")


def test_data_set_of_a_list_is_downloaded_and_preprocessed_with_its_splits_and_said_in_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = flat(tmp_path / "source", below="deep/clips")
    table(tmp_path / "source" / "list.csv", rows)
    recordings = download(str(tmp_path / "source"), "", tmp_path)
    folder = preprocess(recordings, tmp_path, words="yes,left", num_threads=1)
    tensors = Tensors(folder)
    for split in ("train", "validation", "test"):
        expected = {row["file"] for row in rows if row["split"] == split}
        assert {clip.file for clip in tensors.split(split).clips} == expected
    assert tensors.manifest["speakers"] == {"speakers": 7, "clips_without": 0}
    assert (
        "found layout list, 2 words, 7 speakers, splits as stated (train 12, validation 4, test 4), 20 clips, 0.3 "
        "minutes" in caplog.text
    )


@pytest.mark.parametrize("word", ["café", "शुरू", "停止"])
def test_word_of_a_mac_is_the_same_as_of_linux_and_of_the_command_line(tmp_path: Path, word: str) -> None:
    mac = unicodedata.normalize("NFD", word)
    for number, source in enumerate(real("yes")):
        place(tmp_path / (word if number % 2 else mac) / f"{number}.wav", source)
    for number, source in enumerate(real("left")):
        place(tmp_path / "left" / f"{number}.wav", source)
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 10, unicodedata.normalize("NFC", word): 10}
    folder = preprocess(tmp_path, tmp_path / "data", Recipe(split="random"), words=f"left,{mac}", num_threads=1)
    assert Tensors(folder).words == ["left", unicodedata.normalize("NFC", word)]


def test_words_that_differ_in_case_are_one_and_the_command_line_spells_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, source in enumerate(real("yes")):
        place(tmp_path / ("Yes" if number else "yes") / f"{number}.wav", source)
    for number, source in enumerate(real("left")):
        place(tmp_path / "LEFT" / f"{number}.wav", source)
    assert counts(list_recordings(tmp_path)) == {"LEFT": 10, "Yes": 10}
    assert "Yes and yes are taken for one word, Yes, as they differ only in case" in caplog.text
    folder = preprocess(tmp_path, tmp_path / "data", Recipe(split="random"), words="left,yes", num_threads=1)
    assert Tensors(folder).words == ["left", "yes"]
    assert set(Tensors(folder).split("train").labels.tolist()) == {0, 1}


def test_word_of_which_no_file_can_be_read_is_refused(tmp_path: Path) -> None:
    for word in ("yes", "left"):
        for source in real(word):
            place(tmp_path / word / source.name, source)
    (tmp_path / "go").mkdir()
    (tmp_path / "go" / "1.mid").write_bytes(b"sound")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("no sound")
    with pytest.raises(
        ValueError, match=r"got go with only files like go/1.mid: convert them to WAV or FLAC, or remove"
    ):
        preprocess(tmp_path, tmp_path / "data", Recipe(split="random"), words="auto")
    with pytest.raises(ValueError, match=r"got none for go; there are left, yes .* go, of which no file can be read"):
        preprocess(tmp_path, tmp_path / "data", Recipe(split="random"), words="yes,go")


def test_layout_that_a_download_was_told_is_that_of_the_later_steps(tmp_path: Path) -> None:
    for speaker in ("anna", "bob"):
        for word in ("ja", "nein"):
            place(tmp_path / "source" / speaker / word / "1.wav", real(("yes", "left")[word == "ja"])[speaker == "bob"])
    source = str(tmp_path / "source")
    with pytest.raises(UnclearLayout, match="use --layout word/speaker or --layout speaker/word"):
        download(source, "", tmp_path)
    by_word, by_speaker = (download(source, "", tmp_path, layout) for layout in ("speaker/word", "word/speaker"))
    assert counts(list_recordings(by_word)) == {"ja": 2, "nein": 2}
    assert counts(list_recordings(by_speaker)) == {"anna": 2, "bob": 2}
    assert files.read_json(by_word / files.MANIFEST)["layout"] == "speaker/word"


def test_archive_of_a_list_in_a_folder_of_its_own_is_read(tmp_path: Path) -> None:
    rows = flat(tmp_path / "made" / "corpus" / "en")
    table(tmp_path / "made" / "corpus" / "en" / "metadata.csv", rows)
    archive = shutil.make_archive(str(tmp_path / "corpus"), "zip", tmp_path / "made")
    listing = list_recordings(download(archive, "", tmp_path))
    assert counts(listing) == {"left": 10, "yes": 10}
    assert {clip.split for clip in listing.clips.of_words(["yes"])} == {"train", "validation", "test"}


def test_index_keeps_rows_and_stretches_and_that_of_earlier_versions_is_read(tmp_path: Path) -> None:
    clips = [
        Clip(file="a.parquet", word="yes", split="train", row=3),
        Clip(file="long.wav", word="yes", split="train", stretch=(0.25, 1.5)),
        Clip(file="noise.wav", word="_silence_", split="test", begin=5, gain=-3),
        Clip(file="yes/a.wav", word="yes", speaker="ann", split="test"),
    ]
    assert len({clip.id for clip in clips}) == 4
    Index.of(clips).save(tmp_path / "index.npz")
    assert list(Index.load(tmp_path / "index.npz")) == clips
    Index.of(clips[2:]).save(tmp_path / "plain.npz")
    with np.load(tmp_path / "plain.npz") as stored:
        assert not {"row", "start", "end"} & set(stored)  # as in earlier versions
    assert list(Index.load(tmp_path / "plain.npz")) == clips[2:]


def test_stated_splits_are_kept_and_what_is_missing_is_taken_from_train_by_speaker() -> None:
    clips = [
        Clip(file=f"{speaker}/{number}.wav", word="yes", speaker=f"s{speaker}", split="train")
        for speaker in range(50)
        for number in range(2)
    ]
    clips += [Clip(file="t.wav", word="yes", speaker="t", split="test")]
    clips += [Clip(file="u.wav", word="yes", speaker="t"), Clip(file="v.wav", word="yes", speaker="new")]
    index = Index.of(clips)
    divided = splits.by_speaker(index, splits.read_lists({}, index))
    assert [clip.file for clip in divided["test"]] == ["t.wav", "u.wav"]
    assert "v.wav" in {clip.file for clip in divided["train"]}
    assert 2 <= len(divided["validation"]) <= 20
    assert splits.speakers_in_two_splits(divided) == {"speakers": 0, "clips": 0}
    few = splits.by_speaker(index[:4], splits.read_lists({}, index))
    assert {split: len(some) for split, some in few.items()}["train"] >= 2  # never all speakers


def test_names_of_files_say_word_and_speaker(tmp_path: Path) -> None:
    """The Free Spoken Digit Dataset has all in one folder, AudioMNIST a folder for each speaker."""
    for number, path in enumerate(real("yes")):
        place(tmp_path / "one" / "recordings" / f"{number % 2}_anna_{number}.wav", path)
        place(tmp_path / "one" / "recordings" / f"{number % 2}_tom_{number}.wav", path)
        place(tmp_path / "other" / f"{number % 5:02}" / f"{number % 2}_{number % 5:02}_{number}.wav", path)
    one, other = (list_recordings(tmp_path / name) for name in ("one", "other"))
    assert (one.layout, counts(one), one.clips.counts("speaker")) == (
        "names",
        {"0": 10, "1": 10},
        {"anna": 10, "tom": 10},
    )
    assert (other.layout, counts(other), len(other.clips.counts("speaker"))) == ("names", {"0": 5, "1": 5}, 5)


@pytest.mark.parametrize(
    ("pattern", "speakers", "splits"),
    [
        ("{speaker}/{word} ({number}).wav", {"anna": 10, "tom": 10}, {"": 20}),
        ("{split}/{word}_{number}.wav", {"": 20}, {"train": 12, "test": 8}),
        ("{split}/{speaker}/{word}-{number}.wav", {"anna": 10, "tom": 10}, {"train": 12, "test": 8}),
        ("{split}/{word}_{speaker}_{number}.wav", {"anna": 10, "tom": 10}, {"train": 12, "test": 8}),
        ("wavs/{word}{number}.wav", {"": 20}, {"": 20}),
    ],
)
def test_folders_of_named_files_are_speakers_or_splits(
    tmp_path: Path, pattern: str, speakers: dict[str, int], splits: dict[str, int]
) -> None:
    for word in ("yes", "left"):
        for number, path in enumerate(real(word)):
            names = {"speaker": ("anna", "tom")[number % 2], "split": "test" if number > 5 else "train"}
            place(tmp_path / pattern.format(word=word, number=number, **names), path)
    listing = list_recordings(tmp_path)
    assert (listing.layout, counts(listing)) == ("names", {"left": 10, "yes": 10})
    assert listing.clips.counts("speaker") == speakers
    assert listing.clips.counts("split") == splits


def test_folders_named_like_speakers_are_not_taken_for_words(tmp_path: Path) -> None:
    for number, path in enumerate(real("yes")):
        place(tmp_path / f"Actor_{number % 2:02}" / f"03-01-{number:02}.wav", path)
    with pytest.raises(UnclearLayout, match="got Actor_00, Actor_01, which may be speakers by their names"):
        list_recordings(tmp_path)
    assert list_recordings(tmp_path, "word").words == ["Actor_00", "Actor_01"]


@pytest.mark.parametrize("suffix", ["cls", "txt", "json"])
def test_shards_of_webdataset_say_the_word_beside_each_recording(tmp_path: Path, suffix: str) -> None:
    for number, (word, path) in enumerate((one, path) for one in ("yes", "left") for path in real(one)):
        shard = tmp_path / "all" / f"{('train', 'test')[number % 2]}-{number % 4:06}.tar"
        shard.parent.mkdir(exist_ok=True)
        beside = tmp_path / f"{number:06}.{suffix}"
        beside.write_text(json.dumps({"label": word, "speaker": f"s{number}"}) if suffix == "json" else word)
        with tarfile.open(shard, "a") as archive:
            archive.add(path, f"{number:06}.wav")
            archive.add(beside, beside.name)
    listing = list_recordings(download(str(tmp_path / "all"), "", tmp_path / "data"))
    assert (listing.layout, counts(listing)) == ("sidecars", {"left": 10, "yes": 10})
    assert listing.clips.counts("split") == {"test": 10, "train": 10}
    assert len(listing.clips.counts("speaker")) == (20 if suffix == "json" else 1)


def test_label_studio_says_the_word_of_a_recording_or_of_its_stretches(tmp_path: Path) -> None:
    for name, value in (("whole", {"choices": ["yes"]}), ("part", {"start": 0.1, "end": 0.4, "labels": ["yes"]})):
        place(tmp_path / name / "media" / "upload" / "1-a.wav", real("yes")[0])
        task = {"annotations": [{"result": [{"value": value}]}], "data": {"audio": "/data/upload/1-a.wav"}}
        (tmp_path / name / "project.json").write_text(json.dumps([task]))
    (whole,), (part,) = (list_recordings(tmp_path / name).clips for name in ("whole", "part"))
    assert (whole.word, whole.stretch, part.word, part.stretch) == ("yes", None, "yes", (0.1, 0.4))


def test_lj_speech_has_sentences_between_bars_and_no_speakers(tmp_path: Path) -> None:
    rows = flat(tmp_path, below="wavs")
    sentences = [*(row["word"].title() for row in rows[1:]), "Printing, in the only sense"]
    text = "".join(f"{row['file'][5:-4]}|{said}|{said.lower()}\n" for row, said in zip(rows, sentences, strict=True))
    (tmp_path / "metadata.csv").write_text(text)
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"Left": 10, "Yes": 9}
    assert listing.clips.counts("speaker") == {"": 19}
    assert listing.left_out == {"they are sentences of several words": 1}


def test_csv_of_excel_is_read_and_one_with_other_columns_refused(tmp_path: Path) -> None:
    rows = flat(tmp_path, below="audio")
    cells = "".join(f"{row['file'][6:]};{'schön' if row['word'] == 'yes' else 'nein'}\r\n" for row in rows)
    (tmp_path / "list.csv").write_bytes(f"sep=;\r\nFile;Word\r\n{cells}".encode("latin-1"))
    assert counts(list_recordings(tmp_path)) == {"nein": 10, "schön": 10}
    cells = cells.replace("\r\n", ";laut\r\n")
    (tmp_path / "list.csv").write_bytes(f"Datei;Wort;Art\r\n{cells}".encode("latin-1"))
    with pytest.raises(UnclearLayout, match=r"got list\.csv with Datei, Wort, Art, of which Datei names recordings"):
        list_recordings(tmp_path)


WORDS = ("yes", "left")


def _kaggle(folder: Path) -> None:
    for word in WORDS:
        for source in real(word):
            place(folder / "train" / "audio" / word / source.name, source)
            place(folder / "test" / "audio" / f"clip_{word[0]}{source.name[:6]}.wav", source)
    (folder / "train" / "testing_list.txt").write_text("".join(f"{word}/{real(word)[0].name}\n" for word in WORDS))


def _conditions(folder: Path) -> None:
    for word in WORDS:
        for number, source in enumerate(real(word)):
            place(folder / word / ("near", "far")[number % 2] / source.name, source)


def _sessions(folder: Path) -> None:
    for word in WORDS:
        for number, source in enumerate(real(word)):
            place(folder / f"speaker{number % 3}" / "wav" / word / f"{number}.wav", source)


def _ground_truth(folder: Path) -> None:
    rows = flat(folder, below="FSD50K.dev_audio")
    table(
        folder / "FSD50K.ground_truth" / "dev.csv",
        [{"fname": Path(row["file"]).stem, "labels": row["word"], "mids": "/m/1"} for row in rows],
    )


def _two_columns(folder: Path) -> None:
    table(folder / "liste.csv", [{"Datei": row["file"], "Wort": row["word"]} for row in flat(folder)], ";")


def _blanks(folder: Path) -> None:
    (folder / "list.lst").write_text("".join(f"{row['file']} {row['word']}\n" for row in flat(folder)))


def _mapping(folder: Path) -> None:
    files.write_json(folder / "labels.json", {row["file"]: row["word"] for row in flat(folder)})


def _mapping_of_objects(folder: Path) -> None:
    rows = flat(folder)
    (folder / "labels.json").write_text(json.dumps({row["file"]: {"label": row["word"]} for row in rows}))


def _array_in_an_object(folder: Path) -> None:
    rows = [{"audio": row["file"], "label": row["word"]} for row in flat(folder)]
    (folder / "data.json").write_text(json.dumps({"version": 1, "data": rows}))


def _numbered(folder: Path) -> None:
    for word in WORDS:
        for number, source in enumerate(real(word), 1):
            place(folder / f"{word} ({number}).wav", source)


def _digits(folder: Path) -> None:
    for digit, word in enumerate(WORDS):
        for number, source in enumerate(real(word)):
            place(folder / f"{digit}_jackson_{number}.wav", source)


def _long_recording(path: Path) -> list[tuple[float, float, str]]:
    """Writes ten clips of each word one after another, and returns where each is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sounds, found, at = [], [], 0.0
    for source, word in ((path, name) for name in WORDS for path in real(name)):
        samples, rate = soundfile.read(source)
        sounds += [np.zeros(rate // 2), samples]
        found.append((at + 0.5, at + 0.5 + len(samples) / rate, word))
        at += 0.5 + len(samples) / rate
    soundfile.write(path, np.concatenate(sounds), 16_000)
    return found


def _text_grid(folder: Path) -> None:
    labels = _long_recording(folder / "interview.wav")
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "xmin = 0", f"xmax = {labels[-1][1]}", "size = 2"]
    for tier in ("words", "phones"):
        lines += ["item:", 'class = "IntervalTier"', f'name = "{tier}"', "xmin = 0", f"xmax = {labels[-1][1]}"]
        for start, end, word in labels:
            lines += [f"xmin = {start - 0.5}", f"xmax = {start}", 'text = ""']
            lines += [f"xmin = {start}", f"xmax = {end}", f'text = "{word if tier == "words" else "j"}"']
    (folder / "interview.TextGrid").write_text("\n".join(lines), encoding="utf-16")


def _short_text_grid(folder: Path) -> None:
    labels = _long_recording(folder / "interview.wav")
    lines = ['"ooTextFile"', '"TextGrid"', "0", str(labels[-1][1]), "<exists>", "1", '"IntervalTier"', '"all"', "0"]
    lines += [str(labels[-1][1]), str(len(labels)), *(f'{start}\n{end}\n"{word}"' for start, end, word in labels)]
    (folder / "interview.TextGrid").write_text("\n".join(lines))


def _subtitles(folder: Path) -> None:
    cues = [(start, end, f"{word.capitalize()}.") for start, end, word in _long_recording(folder / "interview.wav")]
    cues.append((0.1, 0.4, "yes\nplease"))
    texts = (f"{number}\n00:00:{a:06.3f} --> 00:00:{b:06.3f}\n{word}\n" for number, (a, b, word) in enumerate(cues, 1))
    (folder / "interview.srt").write_text("\n".join(texts).replace(".", ",", 2))


@pytest.mark.parametrize(
    ("make", "layout", "speakers"),
    [
        (_kaggle, "*/*/word", 9),
        (_conditions, "word/speaker", 9),
        (_sessions, "speaker/*/word", 3),
        (_ground_truth, "list", 0),
        (_two_columns, "list", 0),
        (_blanks, "list", 0),
        (_mapping, "list", 0),
        (_mapping_of_objects, "list", 0),
        (_array_in_an_object, "list", 0),
        (_numbered, "names", 0),
        (_digits, "names", 1),
        (_text_grid, "label-tracks", 0),
        (_short_text_grid, "label-tracks", 0),
        (_subtitles, "label-tracks", 0),
    ],
)
def test_data_set_that_download_makes_is_what_the_source_is(
    tmp_path: Path, make: Callable[[Path], None], layout: str, speakers: int
) -> None:
    make(tmp_path / "source")
    listing = list_recordings(tmp_path / "source")
    assert listing.layout == layout
    assert len(listing.clips.counts("speaker").keys() - {""}) == speakers
    assert sorted(counts(listing).values()) == [10, 10]
    data_set = list_recordings(download(str(tmp_path / "source"), "", tmp_path / "data"))
    assert said(data_set) == said(listing)
    assert data_set.layout == layout


def test_lists_of_splits_count_where_they_lie(tmp_path: Path) -> None:
    _kaggle(tmp_path)
    listing = list_recordings(tmp_path)
    lists = splits.read_lists(listing.lists, listing.clips)
    assert Counter(lists.split_of.tolist()) == {-1: 18, 2: 2}


def test_entry_of_a_list_names_the_recording_in_its_folder(tmp_path: Path) -> None:
    for speaker in ("s1", "s2"):
        for word in WORDS:
            place(tmp_path / speaker / word / "0.wav", real(word)[0])
    (tmp_path / "testing_list.txt").write_text("s1/yes/0.wav\n")
    listing = list_recordings(tmp_path)
    lists = splits.read_lists(listing.lists, listing.clips)
    assert [clip.file for clip, split in zip(listing.clips, lists.split_of, strict=True) if split == 2] == [
        "s1/yes/0.wav"
    ]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["{speaker}-2008/wav"], "may be speakers by their names"),
        (["wav"], "got labels[.]xlsx: save it as CSV"),
        (["a{speaker}/b{number}/c{word}"], "such as --layout speaker/[*]/word"),
        (["train/wavs", "test/wavs"], "splits by their names"),
    ],
)
def test_folders_that_do_not_tell_the_words_are_refused(tmp_path: Path, folders: list[str], message: str) -> None:
    for word in WORDS:
        for number, source in enumerate(real(word)):
            for folder in folders:
                place(
                    tmp_path
                    / folder.format(speaker=f"ana{number % 3}", number=number, word=word)
                    / f"{word[0]}{number}.wav",
                    source,
                )
    (tmp_path / "labels.xlsx").write_bytes(b"PK")
    with pytest.raises(UnclearLayout, match=message):
        list_recordings(tmp_path)


def test_list_of_a_split_with_blanks_in_names_is_no_list_of_words(tmp_path: Path) -> None:
    for word in WORDS:
        for name, source in zip(("a", "a 1", "a 2"), real(word), strict=False):
            place(tmp_path / word / f"{name}.wav", source)
    (tmp_path / "testing_list.txt").write_text("yes/a 1.wav\nleft/a 1.wav\n")
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"left": 3, "yes": 3}
    assert Counter(splits.read_lists(listing.lists, listing.clips).split_of.tolist()) == {-1: 4, 2: 2}


def test_text_grid_that_breaks_off_is_refused_with_its_tiers(tmp_path: Path) -> None:
    _text_grid(tmp_path)
    track = tmp_path / "interview.TextGrid"
    text = track.read_text(encoding="utf-16")
    end = text.rindex('"IntervalTier"') + len('"IntervalTier"')
    track.write_text(text[:end].replace('"words"', '"all"'))
    with pytest.raises(UnclearLayout, match=r"must have one tier of words, got interview\.TextGrid with all, "):
        list_recordings(tmp_path)


def test_table_about_speakers_beside_folders_of_words_is_no_list(tmp_path: Path) -> None:
    rows = []
    for word in WORDS:
        for source in real(word):
            place(tmp_path / word / source.name, source)
            rows.append({"clip_name": f"{word}/{source.name}", "gender": "female"})
    table(tmp_path / "about.csv", rows)
    assert counts(list_recordings(tmp_path)) == {"left": 10, "yes": 10}
