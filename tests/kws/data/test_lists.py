"""What lists of recordings say in the ways of different tools, and which of them are refused rather than misread."""

import gzip
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kws.data.layouts.rows import UnclearLayout
from kws.data.listing import Listing
from kws.data.sources import list_recordings

WORDS = ("yes", "left")
STEMS = [f"{word[0]}{number}" for word in WORDS for number in range(4)]
WORD_OF = {stem: WORDS[stem[0] == "l"] for stem in STEMS}
HALF = {"yes": 4, "left": 4}


def place(folder: Path, *files: str) -> None:
    """Places recordings, of which no listing hears anything."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")


def clips(folder: Path, below: str = "clips") -> list[tuple[str, str]]:
    """Places four recordings of each of two words in one folder; returns the file and word of each."""
    files = [(f"{below}/{stem}.wav", WORD_OF[stem]) for stem in STEMS]
    place(folder, *(file for file, _ in files))
    return files


def table(path: Path, header: str, rows: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def document(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def counts(listing: Listing) -> dict[str, int]:
    return listing.clips.counts()


def stretches(listing: Listing) -> set[tuple[float, float] | None]:
    return {clip.stretch for clip in listing.clips}


@pytest.mark.parametrize("header", [",fname,label", ",name,label", "index,clip no,label", "id,sound,label"])
def test_column_that_counts_the_rows_is_not_the_one_of_the_files(tmp_path: Path, header: str) -> None:
    words = [WORDS[number % 2] for number in range(8)]
    place(tmp_path, *(f"{number}.wav" for number in range(1, 9)))
    table(tmp_path / "train.csv", header, [f"{at},{at + 1}.wav,{word}" for at, word in enumerate(words)])
    said = {clip.file: clip.word for clip in list_recordings(tmp_path).clips}
    assert said == {f"{at}.wav": word for at, word in enumerate(words, 1)}


def test_column_that_counts_the_rows_is_the_one_of_the_files_if_each_has_such_a_name(tmp_path: Path) -> None:
    place(tmp_path, *(f"audio/{number}.wav" for number in range(1, 9)))
    table(tmp_path / "train.csv", "id,label", [f"{at},{WORDS[at % 2]}" for at in range(1, 9)])
    assert counts(list_recordings(tmp_path)) == HALF


def test_splits_of_a_json_document_are_read(tmp_path: Path) -> None:
    rows = [{"file": file, "word": word} for file, word in clips(tmp_path, "speech")]
    document(tmp_path / "data.json", {"train": rows[::2], "test": rows[1::2]})
    listing = list_recordings(tmp_path)
    assert counts(listing) == HALF
    assert listing.clips.counts("split") == {"train": 4, "test": 4}


def _csv_of_unknown_words(folder: Path) -> None:
    rows = clips(folder, "utterances")
    table(folder / "l.csv", "utt,phrase,speaker,age", [f"{Path(file).stem},{word},ann,3" for file, word in rows])


def _coco(folder: Path) -> None:
    audios = [{"id": at, "file_name": file} for at, (file, _) in enumerate(clips(folder, "speech"))]
    document(folder / "a.json", {"categories": [{"id": 0, "name": "yes"}], "audios": audios})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_csv_of_unknown_words, "l.csv with utt, phrase, speaker, age, whose recordings all lie in utterances: name"),
        (_coco, "a.json with id, file_name, of which file_name names recordings: name the columns so"),
    ],
)
def test_one_folder_is_not_the_word_of_a_list_whose_words_are_not_understood(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(UnclearLayout, match=message):
        list_recordings(tmp_path)


def test_list_without_words_beside_one_with_them_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = clips(tmp_path, "utterances")
    table(tmp_path / "words.csv", "file,word", [f"{file},{word}" for file, word in rows])
    table(tmp_path / "speakers.csv", "file,speaker", [f"{file},ann" for file, _ in rows])
    assert counts(list_recordings(tmp_path)) == HALF
    assert "speakers.csv is not read, as none of its columns (file, speaker) is known to say the words" in caplog.text


def _quoted(value: Any) -> str:
    return '"' + json.dumps(value).replace('"', '""') + '"'


@pytest.mark.parametrize("as_csv", [True, False])
@pytest.mark.parametrize("has_stretches", [True, False])
def test_annotations_of_label_studio_in_the_cells_of_a_list_are_labels_and_stretches(
    tmp_path: Path, as_csv: bool, has_stretches: bool
) -> None:
    rows = []
    for file, word in clips(tmp_path, "upload"):
        regions = [{"start": 0.2, "end": 0.9, "labels": [word]}, {"start": 1, "end": 2, "labels": ["right"]}]
        rows.append((f"/data/upload/3/{Path(file).name}", regions if has_stretches else {"choices": [word]}))
    if as_csv:
        table(tmp_path / "p.csv", "audio,id,label", [f"{file},1,{_quoted(cell)}" for file, cell in rows])
    else:
        document(tmp_path / "p.json", [{"audio": file, "id": 1, "label": cell} for file, cell in rows])
    listing = list_recordings(tmp_path)
    assert counts(listing) == (HALF | {"right": 8} if has_stretches else HALF)
    assert stretches(listing) == ({(0.2, 0.9), (1.0, 2.0)} if has_stretches else {None})


def test_several_choices_for_a_recording_are_no_word_and_a_cancelled_annotation_does_not_count(tmp_path: Path) -> None:
    tasks = []
    for at, (file, word) in enumerate(clips(tmp_path, "upload")):
        made = {"result": [{"value": {"choices": [word] if at else [word, "noise"]}}]}
        cancelled = {"was_cancelled": True, "result": [{"value": {"choices": ["stop"]}}]}
        tasks.append({"data": {"audio": file}, "annotations": [made, cancelled]})
    document(tmp_path / "p.json", tasks)
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"yes": 3, "left": 4}
    assert listing.left_out == {"they have several labels": 1}


def test_row_without_a_word_is_not_of_the_word_that_its_folder_is_called(tmp_path: Path) -> None:
    rows = [f"{file},{word if at else ''}" for at, (file, word) in enumerate(clips(tmp_path, "upload"))]
    table(tmp_path / "l.csv", "file,word", rows)
    assert counts(list_recordings(tmp_path)) == {"yes": 3, "left": 4}


@pytest.mark.parametrize("has_stretches", [True, False])
def test_prodigys_labels_are_read_if_they_are_accepted(tmp_path: Path, has_stretches: bool) -> None:
    rows: list[Mapping[str, Any]] = []
    for at, (file, word) in enumerate(clips(tmp_path, "audio")):
        labels = {"audio_spans": [{"start": 0.2, "end": 0.7, "label": word}]} if has_stretches else {"accept": [word]}
        row = {"audio": file, "text": Path(file).stem, "path": f"/home/ann/{file}", "label": "WORDS"}
        rows.append(row | labels | {"answer": ("reject", "ignore", "accept", "accept")[at % 4]})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    listing = list_recordings(tmp_path)
    assert counts(listing) == {"yes": 2, "left": 2}
    assert stretches(listing) == {(0.2, 0.7) if has_stretches else None}


@pytest.mark.parametrize(
    ("columns", "cells", "stretch"),
    [
        ("start;end", "0,5;1,25", (0.5, 1.25)),
        ("start;end", "00:00:00.5;00:01:01,25", (0.5, 61.25)),
        ("start;end", "NA;1.5", (0, 1.5)),
        ("start_seconds;end_seconds", "0.5;1.25", (0.5, 1.25)),
        ("Begin Time (s);End Time (s)", "0.5;1.25", (0.5, 1.25)),
        ("start_ms;end_ms", "500;1250", (0.5, 1.25)),
        ("begin_ms;duration_ms", "500;750", (0.5, 1.25)),
        ("offset [ms];duration", "500;0.75", (0.5, 1.25)),
    ],
)
def test_times_are_read_as_they_are_written(
    tmp_path: Path, columns: str, cells: str, stretch: tuple[float, float]
) -> None:
    table(tmp_path / "l.csv", f"file;word;{columns}", [f"{file};{word};{cells}" for file, word in clips(tmp_path)])
    assert stretches(list_recordings(tmp_path)) == {stretch}


@pytest.mark.parametrize("cell", ["half a second", "0.5 s", "1:2:3:4", "1,234.5"])
def test_what_is_no_time_is_refused_with_the_column(tmp_path: Path, cell: str) -> None:
    table(
        tmp_path / "l.tsv", "file\tword\tstart\tend", [f"{file}\t{word}\t{cell}\t9" for file, word in clips(tmp_path)]
    )
    with pytest.raises(
        UnclearLayout, match=r"such as 1\.5 or 00:00:01\.5, got '.*' in column start of l\.tsv: correct"
    ):
        list_recordings(tmp_path)


def test_slice_is_not_cut_where_it_lay_in_its_source(tmp_path: Path) -> None:
    """UrbanSound8K."""
    rows = [f"{Path(file).name},1,30.2,34.2,{word}" for file, word in clips(tmp_path, "audio/fold1")]
    table(tmp_path / "metadata" / "U.csv", "slice_file_name,fsID,start,end,class", rows)
    listing = list_recordings(tmp_path)
    assert counts(listing) == HALF
    assert stretches(listing) == {None}


def _words_and_test(folder: Path) -> list[str]:
    place(folder, *(f"train/audio/{word}/{stem}.wav" for stem, word in WORD_OF.items()))
    place(folder, *(f"test/audio/c{stem}.wav" for stem in STEMS))
    return [f"c{stem}.wav,silence" for stem in STEMS]


def test_sample_of_what_to_submit_is_no_list(tmp_path: Path) -> None:
    table(tmp_path / "sample_submission.csv", "fname,label", _words_and_test(tmp_path))
    assert counts(list_recordings(tmp_path)) == HALF


def test_list_of_one_word_beside_folders_of_words_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "sample.csv", "fname,label", _words_and_test(tmp_path))
    with pytest.raises(UnclearLayout, match=r"sample.csv with 8 of 16, of 1 words; the others lie in 2 folders: use"):
        list_recordings(tmp_path)
    assert counts(list_recordings(tmp_path, "list")) == {"silence": 8}


@pytest.mark.parametrize("name", ["metadata.csv", "train.txt"])
def test_numbers_of_classes_are_called_as_the_folders_that_they_number(tmp_path: Path, name: str) -> None:
    rows = [(f"{word}/{stem}.wav", WORDS.index(word)) for stem, word in WORD_OF.items()]
    place(tmp_path, *(file for file, _ in rows))
    if name.endswith(".csv"):
        table(tmp_path / name, "file_name,label", [f"{file},{label}" for file, label in rows])
    else:
        (tmp_path / name).write_text("".join(f"{file} {label}\n" for file, label in rows))
    listing = list_recordings(tmp_path)
    assert counts(listing) == HALF
    assert {clip.word for clip in listing.clips if clip.file.startswith("yes/")} == {"yes"}


def test_numbers_that_do_not_number_the_folders_stay_the_words(tmp_path: Path) -> None:
    files = [file for below in ("ann", "bob") for file, _ in clips(tmp_path, below)]
    table(tmp_path / "l.csv", "file,label", [f"{file},{at % 2}" for at, file in enumerate(files)])
    assert counts(list_recordings(tmp_path)) == {"0": 8, "1": 8}


@pytest.mark.parametrize("times", [1, 2000])
def test_quotation_mark_that_is_not_closed_is_refused_with_its_line(tmp_path: Path, times: int) -> None:
    rows = [f"{file},{word},{chr(34) * (at == 3)}5 inch" for at, (file, word) in enumerate(clips(tmp_path) * times)]
    table(tmp_path / "l.csv", "file,word,note", rows)
    with pytest.raises(ValueError, match=r"must be closed, got l\.csv, line 5: .*Close it, write it twice"):
        list_recordings(tmp_path)


def test_list_without_a_header_may_have_the_word_first(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("".join(f"{word},{file}\n" for file, word in clips(tmp_path)))
    assert counts(list_recordings(tmp_path)) == HALF


@pytest.mark.parametrize(
    "header", ["# made by a tool, in 2024\nfile,word,speaker", "# made by a tool\n# clip no,word,spk"]
)
def test_comments_before_the_header_are_passed(tmp_path: Path, header: str) -> None:
    table(tmp_path / "l.csv", header, [f"{file},{word},ann" for file, word in clips(tmp_path)])
    listing = list_recordings(tmp_path)
    assert counts(listing) == HALF
    assert listing.clips.counts("speaker") == {"ann": 8}


@pytest.mark.parametrize(("column", "num_several"), [("labels", 2), ("label", 6)])
def test_row_of_several_labels_is_left_out(tmp_path: Path, column: str, num_several: int) -> None:
    rows = [
        f'{file},"{word},Speech"' if at < num_several else f"{file},{word}"
        for at, (file, word) in enumerate(clips(tmp_path))
    ]
    table(tmp_path / "l.csv", f"file,{column}", rows)
    listing = list_recordings(tmp_path)
    assert len(listing.clips) == 8 - num_several
    assert listing.left_out == {"they have several labels": num_several}


def _with_column(folder: Path, column: str, values: Sequence[str]) -> Listing:
    rows = [f"{file},{word},{values[at % len(values)]}" for at, (file, word) in enumerate(clips(folder))]
    table(folder / "l.csv", f"file,word,{column}", rows)
    return list_recordings(folder)


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("split", ["train-clean-100", "test-clean"], ["train", "test"]),
        ("split", ["Training set", "Test set", "", "dev-other"], ["train", "test", "", "validation"]),
        ("split", ["train", "holdout", "hold-out", "held_out"], ["train", "test", "test", "test"]),
        ("is_test", ["True", "False"], ["test", "train"]),
        ("is_train", ["1", "0"], ["train", "test"]),
        ("is_valid", ["False", "False", "False", "True"], ["train", "train", "train", "validation"]),
    ],
)
def test_splits_are_read_as_they_are_called(
    tmp_path: Path, column: str, values: Sequence[str], expected: Sequence[str]
) -> None:
    listing = _with_column(tmp_path, column, values)
    assert listing.clips.counts("split") == Counter(expected * (8 // len(expected)))
    assert not listing.left_out


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("split", ["train", "extra", "train-dev", "test"], "got extra, train-dev beside train, test in column split"),
        ("valid", ["0", "0", "0", "1"], "valid of l.csv .* got False in 6 of 8: name it is_valid if the others are"),
        ("is_valid", ["1", "1", "1", "0"], "is_valid of l.csv .* got True in 6 of 8: name it valid if these may be"),
    ],
)
def test_splits_of_which_some_are_not_understood_are_refused(
    tmp_path: Path, column: str, values: Sequence[str], message: str
) -> None:
    with pytest.raises(UnclearLayout, match=message):
        _with_column(tmp_path, column, values)


def test_column_that_names_no_split_is_not_used_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert _with_column(tmp_path, "split", ["0", "1"]).clips.counts("split") == {"": 8}
    assert "l.csv: column split (0, 1) is not used as splits" in caplog.text


@pytest.mark.parametrize("column", ["speaker", "subject_id", "Participant ID", "contributor", "talker"])
def test_speaker_that_nobody_knows_is_none(tmp_path: Path, column: str) -> None:
    listing = _with_column(tmp_path, column, ["ann", "Unknown", "n/a", "-"])
    assert listing.clips.counts("speaker") == {"ann": 2, "": 6}


@pytest.mark.parametrize(
    ("column", "below"),
    [("folder", "{}"), ("fold", "audio/fold{}"), ("speaker", "audio/{}"), ("subset", "{}/wav"), ("folder", "x/{}/y")],
)
def test_file_of_a_name_that_several_have_lies_in_the_folder_that_its_row_names(
    tmp_path: Path, column: str, below: str
) -> None:
    rows = []
    for number in range(4):
        for word in WORDS:
            place(tmp_path, f"{below.format(number)}/{word[0]}.wav")
            rows.append(f"{number},{word[0]}.wav,{word}")
    table(tmp_path / "l.csv", f"{column},file,word", [*rows, "9,y.wav,no"])
    listing = list_recordings(tmp_path)
    assert {clip.file: clip.word for clip in listing.clips} == {
        f"{below.format(number)}/{word[0]}.wav": word for number in range(4) for word in WORDS
    }
    assert listing.left_out == {"several recordings have that name": 1}


def test_recordings_that_differ_in_the_format_alone_are_several(tmp_path: Path) -> None:
    rows = clips(tmp_path)
    place(tmp_path, *(file.replace(".wav", ".flac") for file, _ in rows))
    table(tmp_path / "l.csv", "file,word", [f"{Path(file).stem},{word}" for file, word in rows])
    with pytest.raises(UnclearLayout, match="8 rows are not read, as several recordings have that name"):
        list_recordings(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        "file:///home/ann/mes%20sons/{}%20%C3%A9.wav",
        "mes%20sons/{}%20%C3%A9.wav",
        "/data/local-files/?d=p%2Fmes%20sons/{} é.wav",
    ],
)
def test_addresses_are_paths(tmp_path: Path, pattern: str) -> None:
    place(tmp_path, *(f"mes sons/{stem} é.wav" for stem in STEMS))
    table(tmp_path / "l.csv", "file,word", [f"{pattern.format(stem)},{word}" for stem, word in WORD_OF.items()])
    assert counts(list_recordings(tmp_path)) == HALF


def test_compressed_lists_are_read(tmp_path: Path) -> None:
    rows = clips(tmp_path)
    with gzip.open(tmp_path / "train.csv.gz", "wt") as file:
        file.writelines(["file,word\n", *(f"{one},{word}\n" for one, word in rows[:4])])
    with gzip.open(tmp_path / "test.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"recording_id": Path(one).stem, "text": word}) + "\n" for one, word in rows[4:])
    listing = list_recordings(tmp_path)
    assert counts(listing) == HALF
    assert listing.clips.counts("split") == {"train": 4, "test": 4}


def test_list_of_an_unknown_column_of_files_of_which_few_are_there_is_one(tmp_path: Path) -> None:
    """A data set has only the recordings that are read, and its list is that of the source."""
    rows = [f"{file},{word if at % 4 == 0 else 'two words'},ann" for at, (file, word) in enumerate(clips(tmp_path))]
    table(tmp_path / "l.csv", "clip name,text,speaker", rows)
    before = list_recordings(tmp_path)
    for clip in before.not_read:
        (tmp_path / clip).unlink()
    assert len(before.clips) == 2
    assert counts(list_recordings(tmp_path)) == counts(before) == {"yes": 1, "left": 1}


def test_words_of_several_channels_are_refused(tmp_path: Path) -> None:
    place(tmp_path, "calls/a.wav")
    table(tmp_path / "l.csv", "file,channel,start,end,word", ["calls/a.wav,1,0,1,yes", "calls/a.wav,2,0,1,left"])
    with pytest.raises(ValueError, match="call yes and left: correct the list; channels are not read: write each"):
        list_recordings(tmp_path)


def test_column_without_a_name_is_not_that_of_the_words(tmp_path: Path) -> None:
    files = clips(tmp_path)
    rows = [f"{at},{file},s{at % 3},{word.title()},activate" for at, (file, word) in enumerate(files)]
    table(tmp_path / "train_data.csv", ",path,speakerId,transcription,action", rows)
    assert counts(list_recordings(tmp_path)) == {"Left": 4, "Yes": 4}


def sounds(folder: Path, seconds: float = 1.0, below: str = "clips") -> list[tuple[str, str]]:
    """Places recordings of some length; returns the file and word of each."""
    rows = clips(folder, below)
    for file, _ in rows:
        soundfile.write(folder / file, np.zeros(round(16_000 * seconds)), 16_000)
    return rows


@pytest.mark.parametrize(
    ("mark", "cells", "speakers"),
    [
        ("|", "{file}|{speaker}|{word}", 2),
        ("|", "{file}|{number}|{word}", 2),
        ("|", "{file}|{speaker}|EN|{word}", 2),
        (",", "{file},s0{number},{word}", 2),
        (",", "{file},{word},{speaker}", 2),
        (",", "TRAIN,gs://bucket/{file},{word}", 0),
        ("\t", "{file}\t16000\t{word}", 0),
    ],
)
def test_columns_without_a_header_are_what_their_values_tell(
    tmp_path: Path, mark: str, cells: str, speakers: int
) -> None:
    rows = [
        cells.format(file=file, word=word, speaker=("ann", "bob")[at % 2], number=at % 2)
        for at, (file, word) in enumerate(clips(tmp_path))
    ]
    (tmp_path / "filelist.txt").write_text("\n".join(rows))
    listing = list_recordings(tmp_path)
    assert counts(listing) == HALF
    assert len(listing.clips.counts("speaker").keys() - {""}) == speakers


@pytest.mark.parametrize(
    ("header", "cells"),
    [
        ("My recordings, 2023,\n,,\nfile,word,speaker", "{file},{word},ann"),
        ("My recordings\n\nfile;word", "{file};{word}"),
        ("file word", "{file} {word}"),
        ("file              word    speaker", "{file}     {word}   ann"),
        ('"file" "word"', '"1" "{file}" "{word}"'),
        ('"file"\t"word"', '"{file}"\t"{word}"'),
    ],
)
def test_header_of_a_spreadsheet_of_r_or_between_blanks_is_read(tmp_path: Path, header: str, cells: str) -> None:
    table(tmp_path / "l.txt", header, [cells.format(file=file, word=word) for file, word in clips(tmp_path)])
    assert counts(list_recordings(tmp_path)) == HALF


Pairs = Sequence[tuple[str, str]]


@pytest.mark.parametrize(
    "value",
    [
        lambda rows: {Path(file).stem: word for file, word in rows},
        lambda rows: [[file, word] for file, word in rows],
        lambda rows: {"file": [file for file, _ in rows], "word": [word for _, word in rows]},
        lambda rows: {
            what: {str(at): row[n] for at, row in enumerate(rows)} for n, what in enumerate(("file", "word"))
        },
        lambda rows: {"columns": ["file", "word"], "index": [*range(8)], "data": [[*row] for row in rows]},
        lambda rows: {word: [Path(file).stem for file, said in rows if said == word] for word in WORDS},
        lambda rows: {"dataset": {"items": [{"file": file, "meta": {"word": word}} for file, word in rows]}},
        lambda rows: {"train": dict(rows[::2]), "test": dict(rows[1::2])},
        lambda rows: {Path(file).stem: {"wav": f"{{data_root}}/{file}", "words": word} for file, word in rows},
        lambda rows: {str(at): {"filename": file, "text": word} for at, (file, word) in enumerate(rows)},
        lambda rows: [{"source-ref": f"s3://b/{file}", "job-metadata": {"class-name": word}} for file, word in rows],
    ],
)
def test_shapes_of_json_are_read(tmp_path: Path, value: Callable[[Pairs], Any]) -> None:
    document(tmp_path / "labels.json", value(clips(tmp_path, "speech")))
    assert counts(list_recordings(tmp_path)) == HALF


@pytest.mark.parametrize("name", ["data.list", "output.manifest"])
def test_lines_of_json_have_any_suffix(tmp_path: Path, name: str) -> None:
    rows = clips(tmp_path)
    (tmp_path / name).write_text("".join(json.dumps({"wav": f"/x/{file}", "txt": word}) + "\n" for file, word in rows))
    assert counts(list_recordings(tmp_path)) == HALF


def test_wake_words_of_snips_and_mobvoi_have_a_flag_or_a_number(tmp_path: Path) -> None:
    for sort in ("p", "n"):
        names = [f"{sort}{number}" for number in range(4)]
        place(tmp_path / "mobvoi", *(f"hotwords/{name}.wav" for name in names))
        place(tmp_path / "snips", *(f"audio_files/{name}.wav" for name in names))
        rows = [{"keyword_id": 0 if sort == "p" else -1, "speaker_id": "ann", "utt_id": name} for name in names]
        document(tmp_path / "mobvoi" / f"{sort}_train.json", rows)
    flags = [
        {"worker_id": "w1", "audio_file_path": f"audio_files/{sort}{number}.wav", "is_hotword": int(sort == "p")}
        for sort in ("p", "n")
        for number in range(4)
    ]
    document(tmp_path / "snips" / "train.json", flags)
    assert counts(list_recordings(tmp_path / "mobvoi")) == {"-1": 4, "0": 4}
    assert counts(list_recordings(tmp_path / "snips")) == {"hotword": 4, "not_hotword": 4}


def _lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("as_cuts", [True, False])
def test_cuts_and_supervisions_of_lhotse_are_stretches_of_their_recordings(tmp_path: Path, as_cuts: bool) -> None:
    place(tmp_path, "audio/long.wav")
    recording = {"id": "rec-1", "sources": [{"type": "file", "channels": [0], "source": "/mnt/d/audio/long.wav"}]}
    said = [{"recording_id": "rec-1", "text": word, "speaker": "ann", "duration": 0.5} for word in WORDS]
    if as_cuts:
        starts = [{"start": 1.0 + at, "duration": 0.9, "recording": recording} for at in range(2)]
        cuts = [
            one | {"type": "MonoCut", "supervisions": [said[at] | {"start": 0.25}]} for at, one in enumerate(starts)
        ]
        _lines(tmp_path / "cuts_test.jsonl.gz", cuts)
    else:
        _lines(tmp_path / "recordings_test.jsonl.gz", [recording])
        _lines(tmp_path / "supervisions_test.jsonl.gz", [one | {"start": 1.25 + at} for at, one in enumerate(said)])
    listing = list_recordings(tmp_path)
    assert stretches(listing) == {(1.25, 1.75), (2.25, 2.75)}
    assert [clip.word for clip in listing.clips] == ["yes", "left"]
    assert (listing.clips.counts("split"), listing.clips.counts("speaker")) == ({"test": 2}, {"ann": 2})
    assert as_cuts or "recordings_test.jsonl.gz" in listing.tables


def test_mixed_cuts_of_lhotse_are_refused(tmp_path: Path) -> None:
    place(tmp_path, "audio/long.wav")
    _lines(tmp_path / "cuts.jsonl.gz", [{"id": "mix-1", "type": "MixedCut", "tracks": []}] * 2)
    with pytest.raises(ValueError, match="got the mixed cut mix-1: write the cuts with save_audios"):
        list_recordings(tmp_path)


def test_what_is_typed_for_a_stretch_in_label_studio_says_more_than_its_label(tmp_path: Path) -> None:
    tasks = []
    for file, word in clips(tmp_path, "upload"):
        place_of = {"start": 0.2, "end": 0.9}
        results = [
            {"type": "labels", "value": place_of | {"labels": ["Speech"]}},
            {"type": "textarea", "value": place_of | {"text": [word]}},
        ]
        uploaded = f"/data/upload/1/3fa9c8e2-{Path(file).name}"
        tasks.append({"data": {"note": "n", "audio": uploaded}, "annotations": [{"result": results}]})
    document(tmp_path / "p.json", tasks)
    listing = list_recordings(tmp_path)
    assert (counts(listing), stretches(listing)) == (HALF, {(0.2, 0.9)})


@pytest.mark.parametrize(
    ("columns", "cells", "length"),
    [
        ("start,end", "1600,14400", 1.0),
        ("start,end", "100,900", 1.0),
        ("start,duration", "100,800", 1.0),
        ("start_samples,end_samples", "1600,14400", 1.0),
        ("start,end", "0.1,0.9", 1.0),
        ("start,end", "0.1,0.9", 0.5),
    ],
)
def test_times_in_another_unit_are_told_by_the_lengths_of_recordings(
    tmp_path: Path, columns: str, cells: str, length: float
) -> None:
    table(
        tmp_path / "l.csv",
        f"file,word,{columns}",
        [f"{file},{word},{cells}" for file, word in sounds(tmp_path, length)],
    )
    assert stretches(list_recordings(tmp_path)) == {(0.1, 0.9)}


@pytest.mark.parametrize(("end", "length"), [(9000, 20), (500_000, 1)])
def test_times_that_fit_no_unit_or_two_are_refused(tmp_path: Path, end: int, length: int) -> None:
    rows = [f"{file},{word},0,{end}" for file, word in sounds(tmp_path, length)]
    table(tmp_path / "l.csv", "file,word,start,end", rows)
    with pytest.raises(UnclearLayout, match=r"ends at .* in l\.csv, of a recording of .* s: name the columns start_ms"):
        list_recordings(tmp_path)


@pytest.mark.parametrize("as_map", [True, False])
def test_truth_value_is_no_word(tmp_path: Path, as_map: bool) -> None:
    rows = [(file, word == "yes") for file, word in clips(tmp_path)]
    document(tmp_path / "l.json", dict(rows) if as_map else [{"file": file, "word": word} for file, word in rows])
    with pytest.raises(
        UnclearLayout, match=r"a word must be a text, got true in column word of l\.json: write it betw"
    ):
        list_recordings(tmp_path)


def test_words_that_programs_write_for_none_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"{file},{'nan' if at % 2 else word}" for at, (file, word) in enumerate(clips(tmp_path))]
    table(tmp_path / "l.csv", "file,word", rows)
    list_recordings(tmp_path)
    assert "l.csv: check the words nan, which programs write for none, yes or no" in caplog.text


def test_marks_at_the_end_of_a_word_are_none_of_it(tmp_path: Path) -> None:
    rows = [f"{file},{word}{'.!'[at % 2] if at % 3 else ''}" for at, (file, word) in enumerate(clips(tmp_path))]
    table(tmp_path / "l.csv", "file,word", rows)
    assert counts(list_recordings(tmp_path)) == HALF


def test_label_beside_another_single_word_that_is_said_is_refused_and_a_number_is_not_the_word(tmp_path: Path) -> None:
    rows = clips(tmp_path)
    table(
        tmp_path / "l.csv",
        "file,label,text",
        [f"{file},{'good' if at % 2 else 'bad'},{word}" for at, (file, word) in enumerate(rows)],
    )
    with pytest.raises(UnclearLayout, match=r"got l\.csv with bad in column label and yes in text: name the one that"):
        list_recordings(tmp_path)
    table(tmp_path / "l.csv", "file,label,text", [f"{file},{WORDS.index(word)},{word}" for file, word in rows])
    assert counts(list_recordings(tmp_path)) == HALF


def test_lengths_beside_a_list_of_words_are_no_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = clips(tmp_path)
    table(tmp_path / "train.tsv", "path\tsentence", [f"{file}\t{word}" for file, word in rows[1::2]])
    table(tmp_path / "invalidated.tsv", "path\tsentence", [f"{file}\t{word}" for file, word in rows[::2]])
    (tmp_path / "times.txt").write_text("".join(f"{file}\t10{at}0\n" for at, (file, _) in enumerate(rows)))
    assert counts(list_recordings(tmp_path)) == {"yes": 2, "left": 2}
    assert "times.txt is not read, as it has numbers where train.tsv has words" in caplog.text


@pytest.mark.parametrize("column", ["phase", "dataset", "data_type"])
def test_column_of_any_name_with_splits_alone_is_that_of_the_splits(tmp_path: Path, column: str) -> None:
    assert _with_column(tmp_path, column, ["train", "test"]).clips.counts("split") == {"train": 4, "test": 4}


def test_numbers_lose_their_zeros_in_spreadsheets_unless_recordings_differ_in_them(tmp_path: Path) -> None:
    place(tmp_path, *(f"clips/{number:03}.wav" for number in range(8)))
    table(tmp_path / "l.csv", "id,word", [f"{number},{WORDS[number % 2]}" for number in (3, 1, 0, 2, 7, 5, 4, 6)])
    said = {clip.file: clip.word for clip in list_recordings(tmp_path).clips}
    assert said == {f"clips/{number:03}.wav": WORDS[number % 2] for number in range(8)}
    place(tmp_path, "clips/3.wav")
    assert "clips/003.wav" not in list_recordings(tmp_path).clips.files.tolist()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.yaml", "{file}: {word}", r"got labels\.yaml, in which recordings are named: save it as CSV"),
        ("words.mlf", '"*/{stem}.lab"\n{word}\n.', r"got words\.mlf, in which recordings are named: save it as CSV"),
        ("rec.eaf", "<xml>", r"got rec\.eaf: export its tier of words as a TextGrid"),
        ("p.aup3", "SQLite", r"got p\.aup3: export its labels as text"),
        ("l.csv", "url,word\nhttps://x/{stem}-2,{word}", r"got l\.csv with url .*, and recordings such as clips/"),
    ],
)
def test_file_that_names_recordings_and_is_not_understood_is_named_with_the_remedy(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    files = [(f"clips/rec-{number}.wav", WORDS[number % 2]) for number in range(6)]
    place(tmp_path, *(file for file, _ in files))
    lines = [text.format(file=file, stem=Path(file).stem, word=word) for file, word in files]
    (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(UnclearLayout, match=message):
        list_recordings(tmp_path)


@pytest.mark.parametrize("name", ["data.h5", "X_train.npy", "a-train.tfrecord-00000-of-00001", "words.pkl"])
def test_arrays_are_refused_with_how_to_write_recordings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89HDF")
    with pytest.raises(UnclearLayout, match=r"write each to a WAV file in the folder of its word \(soundfile\.write\)"):
        list_recordings(tmp_path)
