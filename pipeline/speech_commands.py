"""The pipeline: from recordings of spoken words to the model in use.

    download ──recordings──▶ preprocess ──tensors──▶ train ──model──▶ evaluate ──report──▶ promote

This file says what flows where; a `pipeline.placement.Placement` says how each step runs, and may add changes, notify.
"""

from contextlib import nullcontext
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.changes import changes
from components.download import download
from components.evaluate import evaluate
from components.features import features
from components.notify import notify
from components.preprocess import preprocess
from components.promote import promote
from components.train import train
from kws.config import PipelineConfig
from pipeline.placement import Placement

DEFAULT = PipelineConfig()


def speech_commands(placement: Placement) -> BaseComponent:
    """Returns the pipeline whose steps run as a placement says."""

    @dsl.pipeline(
        name="speech-commands",
        description="Trains, evaluates and ships a recognizer of spoken command words (Speech Commands v0.02).",
        pipeline_config=placement.pipeline_config,
    )
    def pipeline(
        source: str = DEFAULT.source,
        layout: str = DEFAULT.layout,
        sha256: str = DEFAULT.sha256,
        data_root: str = DEFAULT.data_root,
        words: str = DEFAULT.words,
        unknown_words: str = DEFAULT.unknown_words,
        preset: str = DEFAULT.preset,
        set: str = DEFAULT.set,
        split: str = "",
        max_bad_fraction: float = DEFAULT.max_bad_fraction,
        epochs: str = "",
        batch_size: str = "",
        learning_rate: str = "",
        init: str = DEFAULT.init,
        seed: str = "",
        num_nodes: int = DEFAULT.num_nodes,
        processes_per_node: str = "",
        debug: bool = DEFAULT.debug,
        min_accuracy: float = DEFAULT.min_accuracy,
        formats: str = DEFAULT.formats,
        false_alarms_per_hour: float = DEFAULT.false_alarms_per_hour,
        approval: str = DEFAULT.approval,
        keep_runs: int = DEFAULT.keep_runs,
    ) -> None:
        """Recordings in, the model in use out; see `kws.config.PipelineConfig` for the parameters.

        What the recipe decides unless it is given is a text, empty if not given: a parameter without a value cannot be
        handed on by Kubeflow Pipelines' local runner.
        """
        told = notify() if placement.notify else None
        chosen = {"words": words, "unknown_words": unknown_words, "preset": preset, "set": set, "split": split}
        training: dict[str, Any] = {"preset": preset, "set": set, "epochs": epochs, "batch_size": batch_size}
        training |= {"learning_rate": learning_rate, "init": init, "seed": seed, "debug": debug, "data_root": data_root}
        more: dict[str, dsl.PipelineTask] = {"notify": told} if told else {}
        with dsl.ExitHandler(told, name="run") if told else nullcontext():
            downloaded = download(source=source, layout=layout, sha256=sha256, data_root=data_root)
            computed: list[int] | dsl.Collected = []
            if (num_shards := placement.preprocess_shards) > 1:
                with dsl.ParallelFor(list(range(num_shards)), parallelism=num_shards) as shard:
                    more["features"] = features(
                        recordings=downloaded.outputs["recordings"],
                        **chosen,
                        data_root=data_root,
                        shard=shard,
                        num_shards=num_shards,
                        clips_per_shard=placement.clips_per_shard,
                    )
                computed = dsl.Collected(more["features"].output)
            preprocessed = preprocess(
                recordings=downloaded.outputs["recordings"],
                **chosen,
                max_bad_fraction=max_bad_fraction,
                data_root=data_root,
                computed=computed,
            )
            tensors = preprocessed.outputs["tensors"]
            if placement.only_new:
                more["changes"] = changes(tensors=tensors, **training)
            with dsl.If(more["changes"].output == "new", name="if new") if placement.only_new else nullcontext():
                trained = train(
                    tensors=tensors,
                    **training,
                    num_nodes=num_nodes,
                    processes_per_node=processes_per_node,
                    run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                )
                model = trained.outputs["model"]
                evaluated = evaluate(model=model, tensors=tensors, false_alarms_per_hour=false_alarms_per_hour)
                promoted = promote(
                    model=model,
                    tensors=tensors,
                    evaluation=evaluated.outputs["evaluation"],
                    report=evaluated.outputs["report"],
                    min_accuracy=min_accuracy,
                    approval=approval,
                    keep_runs=keep_runs,
                    data_root=data_root,
                    formats=formats,
                )
        placement.place(
            download=downloaded, preprocess=preprocessed, train=trained, evaluate=evaluated, promote=promoted, **more
        )

    return pipeline
