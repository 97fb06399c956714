"""The flags of the pipeline's parameters, for every command that takes them."""

import argparse
import os
from collections.abc import Sequence

from kws.config import PipelineConfig
from kws.settings import MODEL_REGISTRY, add_flag, add_registry, field_docs, read_flags


def add_parameters(parser: argparse.ArgumentParser, required: Sequence[str] = ()) -> None:
    """Adds a flag for every parameter of the pipeline, with its default in the help."""
    group = parser.add_argument_group("parameters of the pipeline")
    for name in field_docs(PipelineConfig):
        add_flag(group, PipelineConfig, name, required=name in required)
    add_registry(group, "in which to register every version")


def read_parameters(options: argparse.Namespace) -> PipelineConfig:
    """Returns the parameters of the pipeline from the flags of `add_parameters`.

    Raises:
        ValueError: a value is out of range.
    """
    if options.model_registry:  # not a pipeline parameter: the steps read it from their environment
        os.environ[MODEL_REGISTRY] = options.model_registry
    return read_flags(PipelineConfig, options)
