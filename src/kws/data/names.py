"""Names of files and folders: which are recordings, by whom, of which word and split."""

import functools
import re
import unicodedata

SUFFIXES = (
    ".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3",
    ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64", ".sph",
    ".m4a", ".m4b", ".mp4", ".mov", ".aac", ".3gp", ".3gpp", ".3g2", ".amr", ".awb", ".webm", ".weba", ".mka", ".mkv",
    ".wma", ".asf", ".spx", ".wv", ".ape", ".mp2", ".ac3",
)  # fmt: skip
"""File name suffixes of recordings, in upper or lower case. What a file really is, its first bytes say: see `kinds`."""


THEIR_MANIFEST = "source-manifest.json"
"""What a file that has the name of our own manifest is called in a data set; NeMo's list of recordings has it."""


OF_SYSTEMS = (
    "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "node_modules", "venv",
)  # fmt: skip
"""Folders that programs make, in which no recordings of ours are."""

_CONTAINED = {"audio", "wav", "flac", "mp3", "clip", "data", "dataset", "recording", "sample", "sound", "file"}


def speaker_of(name: str) -> str:
    """Returns the speaker that the name of a recording names before `_nohash_`, or an empty text."""
    if "_nohash_" not in name and "_nohash_" in name.lower():
        name = name.lower()  # old file systems make it 0A7C2A8D_NOHASH_0.WAV
    speaker, named, _ = name.partition("_nohash_")
    return speaker if named else ""


def is_passed_over(name: str) -> bool:
    """Tells whether a file or folder is hidden, or one that programs make."""
    return name.startswith(".") or name in OF_SYSTEMS


def is_recording(name: str) -> bool:
    """Tells by its name whether a file is a recording."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def stem_of(name: str) -> str:
    """Returns the name of a file, or its path, without the suffix of a recording, if it has one."""
    stem, _, suffix = name.rpartition(".")
    return stem if f".{suffix.lower()}" in SUFFIXES else name


def is_container(folder: str) -> bool:
    """Tells whether a folder is named for what it holds, recordings of any words, such as wavs or audio_files."""
    return all(part.removesuffix("s") in _CONTAINED for part in re.split(r"[-_ ]", folder.lower()))


def is_utf8(name: str) -> bool:
    """Tells whether the name of a file is UTF-8."""
    return name.isascii() or name.encode("utf-8", "replace").decode() == name


SPLIT_NAMES = {
    "train": (
        "train", "training", "trn", "entrenamiento", "entrainement", "entraînement", "apprentissage", "treino",
        "treinamento", "addestramento", "обучение", "训练", "訓練", "학습",
    ),
    "validation": (
        "validation", "valid", "validate", "val", "dev", "devel", "development", "validierung", "validación",
        "validacion", "validação", "validazione", "валидация", "验证", "検証", "검증",
    ),
    "test": (
        "test", "testing", "eval", "evaluation", "holdout", "heldout", "prueba", "pruebas", "teste", "тест", "测试",
        "測試", "テスト", "테스트",
    ),
}  # fmt: skip
"""What splits are called; what follows, such as set and data, makes no difference."""

_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


@functools.lru_cache(maxsize=1 << 12)
def split_named(name: str) -> str:
    """Returns the split that a text names, such as TRAIN or dev; empty if it names none."""
    key = re.sub(r"(?<=[a-z])[-_ ](?=[a-z])", "", unicodedata.normalize("NFC", name.strip()).casefold())
    return _SPLIT_OF.get(key) or _SPLIT_OF.get(re.sub(r"(s?(sets?|data|daten|menge|corpus)|集)$", "", key), "")


def split_within(name: str) -> str:
    """Returns the split that the name of a file contains, as in train-00000-of-00001.parquet and en_dev.csv."""
    found = {split_named(part) for part in re.split(r"[^a-z]+", name.casefold())} - {""}
    return found.pop() if len(found) == 1 else ""


def split_of_path(path: str) -> str:
    """Returns the split that the outermost folder of a path names; empty if none."""
    outermost, has_folder, _ = path.replace("\\", "/").removeprefix("./").partition("/")
    return split_named(outermost) if has_folder else ""


def split_in(name: str) -> str:
    """Returns the split that a text names or contains, such as test, 01_train and train-clean-100; empty if none."""
    return split_named(name) or split_within(name)


_NO_NAME = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]|%(?=[0-9A-Fa-f]{2})|^\.|[. ]$')
"""What the name of a folder cannot have on Linux, a Mac or Windows, and what would be taken for an escape."""

_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9¹²³])(?=\.|$)", re.IGNORECASE)
"""Names that Windows keeps for itself, whatever follows a dot."""

_ESCAPE = re.compile(r"(?:%[0-9A-F]{2})+")


def folder_of(word: str) -> str:
    """Returns the name of the folder for a word: the word itself, with what no folder can have escaped as in URLs.

    So `ja/nein` lies in `ja%2Fnein`, and `con`, which Windows keeps for itself, in `%63on`.
    """
    name = _NO_NAME.sub(lambda found: _escaped(found[0]), word)
    return _escaped(name[0]) + name[1:] if _DEVICE.match(name) else name


def word_of(folder: str) -> str:
    """Returns the word for which a folder is named: the inverse of `folder_of`; other folders are named as they are."""
    try:
        word = _ESCAPE.sub(lambda found: bytes.fromhex(found[0].replace("%", "")).decode(), folder)
    except UnicodeDecodeError:
        return folder
    return word if folder_of(word) == folder else folder


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())
