"""Keyword spotting: from recordings of spoken command words to an evaluated, deployable recognizer."""

import os

# From 1.29 on, onnxruntime reports to its maker when imported, with an id that it keeps in the home folder; people
# speak to these models. No module of the project imports onnxruntime before this one.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
