"""The container images of the steps, by the part that each plays.

These are the names of the images of release 0.2.0. Which images a compiled pipeline runs is not decided here: a
`pipeline.placement.Placement` puts its own in their place.
"""

RUNTIME = "kws-runtime:0.2.0"
"""Has torch: recordings to tensors, training, evaluation."""

LAUNCHER = "kws-launcher:0.2.0"
"""Has no torch: starts a training job and follows it."""
