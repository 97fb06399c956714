"""Words of four languages, from where they are spoken to the page that hears them."""

import base64
import json
import shutil
from pathlib import Path

import pytest
from recognizers import MakeRecognizer
from serve.conftest import Start

from kws import files
from kws.cli import main
from kws.data.sources import list_recordings
from kws.download import synthesize
from kws.download.step import download
from kws.evaluate.step import evaluate
from kws.model import bundle, onnx, versions
from kws.preprocess.step import preprocess
from kws.preprocess.tensors import Tensors
from kws.promote.step import promote

SPOKEN = {"de": ("ja/nein", "Straße"), "ja": ("はい", "とまれ"), "ar": ("نعم", "لا"), "hi": ("हाँ", "रुको")}
WORDS = sorted(word for words in SPOKEN.values() for word in words)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A corpus of each language, as `kws synthesize` makes it."""
    folder = tmp_path_factory.mktemp("languages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesize, "NUM_TALKERS", 1)  # sentences, which are not needed, take longest
        for language, words in SPOKEN.items():
            arguments = ["--language", language, "--words", ",".join(words), "--clips-per-word", "10"]
            with pytest.raises(SystemExit) as ended:
                main(["synthesize", str(folder / language), *arguments])
            assert ended.value.code == 0
    return [folder / language for language in SPOKEN]


@pytest.fixture(scope="module")
def data_root(sources: list[Path], make_recognizer: MakeRecognizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published version of an untrained model of all their words, which all steps but training have gone through."""
    root = tmp_path_factory.mktemp("data")
    recordings = download("\n".join(map(str, sources)), "", root)
    tensors = preprocess(recordings, root, words="auto", num_threads=1)
    assert Tensors(tensors).words == WORDS
    model, report, evaluation = root / "model.pth", root / "report.html", root / "evaluation.json"
    bundle.save(model, make_recognizer(words=WORDS))
    files.write_json(evaluation, evaluate(model, tensors, report).summary())
    assert promote(model, tensors, evaluation, report, root, 0.0).is_champion
    return root


def test_words_of_any_script_are_whole_in_everything_that_is_published(data_root: Path, sources: list[Path]) -> None:
    (version,) = (path for path in (data_root / versions.MODELS).iterdir() if path.is_dir())
    report = (version / versions.REPORT).read_text(encoding="utf-8")
    card = (version / versions.CARD).read_text(encoding="utf-8")
    assert all(f"<bdi>{word}</bdi>" in report for word in WORDS)
    assert all(f"`{word}`" in card for word in WORDS)
    assert onnx.load(version / versions.ONNX).words == WORDS
    assert files.read_json(version / files.MANIFEST)["words"] == WORDS
    assert [str(source) in report for source in sources] == [True] * 4
    assert report.count("25.0 %</td>") >= 4  # the share of each
    combined = next(path for path in (data_root / "datasets").iterdir() if path.name.startswith("4-sources"))
    speech = list_recordings(combined).speech
    assert len(speech) == 16
    assert all(talk.text for talk in speech)


def test_words_of_any_script_are_whole_at_the_server_in_its_metrics_and_on_the_page(
    data_root: Path, start: Start
) -> None:
    server = start("--data-root", data_root)
    (clip,) = (data_root / versions.MODELS).glob(f"*/{versions.REFERENCE}")
    content = base64.b64encode(clip.read_bytes()).decode()
    status, answer = server.infer({"name": "waveforms", "datatype": "BYTES", "shape": [1], "data": [content]})
    assert status == 200, answer
    heard = next(output for output in answer["outputs"] if output["name"] == "words")["data"][0]
    assert heard in WORDS
    assert f'word="{heard}"' in server.get("/metrics")[1]
    assert server.get("/card")[1]["words"] == WORDS
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as begun:
        browser = begun.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, height in ((1280, 800), (390, 844)):
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.goto(server.url)
            playwright.expect(tab.locator("#grid li")).to_have_text(WORDS, timeout=60_000)
            apart = [f"\u2068{word}\u2069" if word in SPOKEN["ar"] else word for word in WORDS]
            assert tab.locator("#say").inner_text() == ", ".join(apart)
            # Arabic from right to left, within its own letters only: the words stay in their order.
            rights = tab.evaluate(
                "[...document.querySelectorAll('#grid li')].map((chip) => chip.getBoundingClientRect().right)"
            )
            assert rights[0] < rights[1]
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            tab.locator("#card-title").click()
            card = tab.locator("#card-text").inner_text()
            assert all(word in card for word in WORDS), json.dumps(card, ensure_ascii=False)
            tab.close()
        browser.close()
