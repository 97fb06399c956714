"""A model as a static page: the page of the server with onnxruntime-web in place of the server.

Nothing leaves the browser, and once loaded the page works without a network. `detector.js` is the twin of
`kws.model.detector`, `engine.js` of `kws.serve.page.socket`; the rest of the page is that of the server.
"""

import base64
import hashlib
import importlib.resources
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kws import files
from kws.model import formats, onnx, versions
from kws.model.detector import LONGEST_RISE, OTHER_WORD_SECONDS, REARM_SECONDS, Detector, Thresholds, reported
from kws.preprocess.audio import Waveform
from kws.preprocess.numpy_features import mel_filters
from kws.settings import require

if TYPE_CHECKING:
    from kws.model.bundle import Recognizer
    from kws.model.predict import AnyRecognizer

log = logging.getLogger(__name__)

MARKS_HERTZ = (500, 1000, 2000, 4000)
"""Frequencies that the page marks on the axis of the spectrogram."""

RUNTIME = "onnxruntime-web@1.30.0"
RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm"}

POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
CHANGES = {
    "index.html": {
        "<head>": f'<head>\n<meta http-equiv="content-security-policy" content="{POLICY}">',
        "Sound is sent only to this server, and": "Sound does not leave this browser, and",
        'aria-labelledby="teach-title" id="teach"': 'aria-labelledby="teach-title" id="teach" hidden',
    },
    "page/page.js": {
        "the server or the connection is too slow": "this device is too slow",
        "The connection is slow": "This device is slow",
    },
}
"""What differs from the files of the server's page."""


def export(recognizer: "Recognizer", path: Path, int8: bool = False, beside: Path | None = None) -> dict[str, float]:
    """Writes a page, `index.html` in a folder of its own, and there all that it needs; see `formats.Format.export`.

    The page has the thresholds and the card of the model's folder. The figure is the bytes of all files.

    Raises:
        ValueError: npm is not installed, or cannot fetch onnxruntime-web.
    """
    import onnx as onnx_format

    require(path.name == "index.html", "the name of the page", "be index.html", path.name)
    folder = path.parent
    contents = _runtime()
    onnx.export(recognizer, folder / "model.onnx", int8)
    graph = onnx_format.load(folder / "model.onnx")
    (none,) = (one for one in graph.graph.initializer if one.name == "features")
    graph.graph.initializer.remove(none)  # onnxruntime-web takes no initializers as inputs
    contents["model.onnx"] = graph.SerializeToString()
    words = recognizer.words
    of_tokens = recognizer.margin is not None
    unmeasured = Thresholds.unmeasured(words, of_tokens)
    thresholds = unmeasured if beside is None else Thresholds.beside(beside / "model.pth", words, of_tokens)
    version = str(recognizer.about.get("run", ""))
    contents["engine.json"] = json.dumps(_engine(recognizer, thresholds, version)).encode()
    text = beside / versions.CARD if beside is not None else None
    about = card(recognizer, version, text.read_text() if text is not None and text.is_file() else "")
    contents["card"] = json.dumps(about).encode()
    package = importlib.resources.files("kws")
    for entry in (
        *(package / "serve/page/static").iterdir(),
        package / "curve.js",
        *(package / "model/page").iterdir(),
    ):
        if entry.name.endswith((".js", ".css", ".svg")):
            contents[f"page/{entry.name}"] = entry.read_bytes()
    contents["index.html"] = (package / "serve/page/static/index.html").read_bytes()
    for name, changes in CHANGES.items():
        for before, after in changes.items():
            assert before.encode() in contents[name], before
            contents[name] = contents[name].replace(before.encode(), after.encode())
    service = contents.pop("page/service.js").decode()
    digest = hashlib.sha256(b"".join(contents[name] for name in sorted(contents))).hexdigest()[:16]
    service = service.replace("@DIGEST@", digest).replace('"@FILES@"', ", ".join(map(json.dumps, sorted(contents))))
    contents["service.js"] = service.encode()
    for name, content in contents.items():
        files.write(folder / name, content)
    return {"bytes": sum(map(len, contents.values()))}


def load(path: Path, num_threads: int = 0) -> formats.Exported:
    """Reads the model of a page that `export` wrote.

    Raises:
        FileNotFoundError: there is no such page.
        ValueError: the page is damaged or another one.
    """
    model = path.parent / "model.onnx"
    if not path.is_file() or not model.is_file():
        raise FileNotFoundError(f"model must be a page of kws export, got {str(path)!r}, which has no model.onnx")
    session = onnx.open_session(model, num_threads)
    about = session.get_modelmeta().custom_metadata_map

    def hear(waveform: Waveform) -> npt.NDArray[np.float32]:
        none = np.empty((0, found.features.num_mels, found.features.num_frames), np.float32)
        (probabilities,) = session.run(["probabilities"], {"waveforms": waveform[None], "features": none})
        return np.asarray(probabilities[0])

    values = ", ".join(
        f"{json.dumps(name)}: {about.get(name, 'null')}" for name in ("words", "features", "num_parameters", "about")
    )
    found = formats.Exported.described(f"{{{values}}}".encode(), path, hear)
    return found


def hello(recognizer: "AnyRecognizer", thresholds: Thresholds, version: str) -> dict[str, Any]:
    """Returns what the page is told about a model at first, as JSON values."""
    features = recognizer.features
    filters = mel_filters(features)
    bins = {hertz: hertz * features.n_fft // features.sample_rate for hertz in MARKS_HERTZ}
    return {
        "version": version,
        "words": list(recognizer.words),
        "reported": reported(recognizer.words),
        "thresholds": dict(thresholds.thresholds),
        "false_alarms_per_hour": thresholds.as_json()["false_alarms_per_hour"],
        "curves": thresholds.measured_on.get("curves", []),
        "after": thresholds.after,
        "after_seconds": thresholds.after_seconds,
        "armed": None,
        "num_mels": features.num_mels,
        "frame_seconds": features.hop_length / features.sample_rate,
        "marks": {hertz: int(filters[place].argmax()) for hertz, place in bins.items() if place < len(filters)},
    }


def card(recognizer: "AnyRecognizer", version: str, text: str) -> dict[str, Any]:
    """Returns what the page shows about a model, as JSON values."""
    return {
        "version": version,
        "card": text,
        "words": list(recognizer.words),
        "parameters": recognizer.num_parameters,
        "about": {
            name: value for name, value in recognizer.about.items() if isinstance(value, str | int | float | bool)
        },
    }


def _engine(recognizer: "Recognizer", thresholds: Thresholds, version: str) -> dict[str, Any]:
    """Returns all that `detector.js` has to know, as JSON values."""
    features = recognizer.features
    filters = []
    for weights in mel_filters(features).T:
        (places,) = weights.nonzero()
        first, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        filters.append([first, weights[first:end].tolist()])
    return {
        "hello": hello(recognizer, thresholds, version),
        "features": {
            name: getattr(features, name)
            for name in ("sample_rate", "num_samples", "num_frames", "num_mels", "n_fft", "win_length", "hop_length")
        }
        | {"log": features.log, "log_offset": features.log_offset},
        "filters": filters,
        "shape": Detector(recognizer, thresholds).shape(),
        "thresholds": thresholds.as_json() | {"measured_on": {}},
        "limits": {
            "longest_rise": LONGEST_RISE,
            "other_word_seconds": OTHER_WORD_SECONDS,
            "rearm_seconds": REARM_SECONDS,
        },
    }


def _runtime() -> dict[str, bytes]:
    """Fetches onnxruntime-web with npm, which keeps it for the next time, and returns what the page needs of it."""
    npm = shutil.which("npm")
    require(npm is not None, "npm", f"be installed to fetch {RUNTIME} for the page", "none")
    log.info("fetching %s with npm, 33 MB", RUNTIME)
    with tempfile.TemporaryDirectory() as folder:
        command = [str(npm), "pack", RUNTIME, "--silent", "--prefer-offline", "--fetch-retries=1"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        archive = Path(folder) / f"{RUNTIME.replace('@', '-')}.tgz"
        if done.returncode or not archive.is_file():
            reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
            raise ValueError(
                f"npm must be able to fetch {RUNTIME} for the page, got {reason}; connect this machine to the network "
                "once, npm keeps what it fetched"
            )
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        require(digest == RUNTIME_SHA512, RUNTIME, "have the digest that is known", digest)
        found = {}
        with tarfile.open(archive) as packed:
            for name, to in RUNTIME_FILES.items():
                file = packed.extractfile(f"package/dist/{name}")
                assert file is not None
                found[f"page/{to}"] = file.read()
    return found
