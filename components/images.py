"""The container images of the steps.

These are the image names of release 0.2.0. `pipeline.placement.Placement` replaces them in a compiled pipeline.
"""

RUNTIME = "kws-runtime:0.2.0"
"""Image with torch, for every step but train, and for the training processes."""

LAUNCHER = "kws-launcher:0.2.0"
"""Image without torch, for the train step, which starts a training job and follows it."""
