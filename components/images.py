"""The container images of the steps, named when the pipeline is compiled.

`make images` builds them and tags them by revision; KWS_RUNTIME_IMAGE and KWS_LAUNCHER_IMAGE name others.
"""

import os

RUNTIME = os.environ.get("KWS_RUNTIME_IMAGE", "kws-runtime:0.1.0")
"""Has torch: recordings to tensors, training, evaluation."""

LAUNCHER = os.environ.get("KWS_LAUNCHER_IMAGE", "kws-launcher:0.1.0")
"""Has no torch: starts a PyTorchJob and follows it."""
