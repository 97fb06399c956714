"""Tells a hook how a run ended: steps note it in a folder of the run, and the last one posts what concerns people.

A step that was killed notes nothing: it is the last one that began. The address of a hook is a secret and is read from
the environment only; no log line or error has it.
"""

import contextlib
import http.client
import json
import logging
import os
import shutil
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from kws import files
from kws.text import printable

log = logging.getLogger(__name__)

FOLDER = ".outcomes"

VARIABLE, RUN, ADDRESS, UI = "KWS_OUTCOMES", "KWS_RUN", "KWS_NOTIFY", "KWS_UI"
"""Environment variables: the folder for all runs, the id of the run, the address of the hook, and that of the UI."""

SECONDS = 10.0
"""How long a hook may take to answer."""


def folder_of_run() -> Path | None:
    """Returns the folder for the outcomes of the run that this process is a step of, or None if nobody is told."""
    folder, run = os.environ.get(VARIABLE), os.environ.get(RUN)
    return Path(folder) / run if folder and run and Path(run).name == run else None


def note(step: str, state: str, sentence: str = "", **figures: Any) -> None:
    """Notes what a step is doing, or how it ended; does nothing where nobody is told."""
    if (folder := folder_of_run()) is None:
        return
    try:
        outcome = {"step": step, "state": state, "sentence": sentence, "time": time.time(), "figures": figures}
        files.write_json(folder / f"{step}.json", outcome)
    except OSError as error:
        log.warning("the outcome of %s cannot be noted: %s", step, error)


def begin(step: str) -> None:
    """Notes that a step has begun, and has an exception that ends it noted as well."""
    note(step, "began")
    before = sys.excepthook

    def failed(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        said = printable(" ".join(str(error).split()))[:1000] or kind.__name__
        note(step, "failed", "it was stopped" if kind in (KeyboardInterrupt, SystemExit) else said)
        before(kind, error, traceback)

    sys.excepthook = failed


def tell(state: str = "", reason: str = "") -> bool:
    """Posts to the hook if the run failed, has a candidate or a new champion; a hook that is away costs a warning.

    State and error message are how the other steps ended, as Kubeflow Pipelines sees it; not all that it says is right.

    Returns:
        Whether something was posted.
    """
    folder = folder_of_run()
    message = None if folder is None else _message(folder, state, reason)
    posted = message is not None and post(os.environ.get(ADDRESS, ""), message)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return posted


def _message(folder: Path, state: str, reason: str) -> dict[str, Any] | None:
    """Returns what to post about a run; None if its end concerns nobody."""
    noted = []
    for path in folder.glob("[!.]*.json"):
        with contextlib.suppress(ValueError, OSError):
            noted.append(files.read_object(path, step=str, state=str, sentence=str, time=float, figures=dict))
    noted = sorted((one for one in noted if one["step"] != "notify"), key=lambda one: one["time"])
    failed = [one for one in noted if one["state"] == "failed"]
    ended = [one for one in noted if one["state"] not in ("began", "failed")]
    if failed:
        last, what = failed[-1], "failed"
    elif ended and state != "FAILED":
        last, what = ended[-1], ended[-1]["state"]
    elif noted:
        last = noted[-1] | {"sentence": reason or "it was killed, or could not be started"}
        what = "failed"
    else:
        last, what = {"step": "run", "sentence": reason or "no step could be started", "figures": {}}, "failed"
    if what not in _WORDS:
        return None
    run, ui = folder.name, os.environ.get(UI, "")
    figures = dict(last["figures"])
    links = figures.pop("links", {}) | ({"run": f"{ui}/#/runs/details/{run}"} if ui else {})
    text = _WORDS[what].format(run=run, step=last["step"], sentence=last["sentence"])
    return {
        "state": what,
        "run": run,
        "step": last["step"],
        "sentence": last["sentence"],
        "figures": figures,
        "links": links,
        "text": "\n".join([text, *links.values()]),
    }


_WORDS = {
    "failed": "kws: run {run} failed at {step}: {sentence}",
    "candidate": "kws: run {run} has a candidate that waits for approval: {sentence}",
    "champion": "kws: run {run} has a new champion: {sentence}",
}
"""What is told of each end of a run; others concern nobody."""


def post(address: str, message: dict[str, Any]) -> bool:
    """Posts JSON; if that fails, logs why and returns False. The log does not have the address, which is a secret."""
    if not address.startswith(("http://", "https://")):
        log.warning("the hook was not told: the variable %s must have its address, http://… or https://…", ADDRESS)
        return False
    try:
        request = urllib.request.Request(address, json.dumps(message).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            log.info("told the hook, which answered %d: %s", answer.status, message["text"])
        return True
    except (OSError, ValueError, http.client.HTTPException) as error:  # whose messages may have the address
        said = getattr(error, "code", None) or getattr(error, "reason", None) or type(error).__name__
        log.warning("the hook was not told: %s", said)
        return False
