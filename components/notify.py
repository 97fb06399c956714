"""The last step of a run that is to be told of: runs however the others ended."""

from kfp.dsl import PipelineTaskFinalStatus, component

from components import images


@component(base_image=images.LAUNCHER, install_kfp_package=False)
def notify(status: PipelineTaskFinalStatus) -> None:
    """Tells a hook, whose address is in the environment, if the run failed, has a candidate or a new champion.

    Args:
        status: how the other steps ended, as Kubeflow Pipelines sees it.
    """
    from kws import outcomes, steps

    steps.start("notify")
    outcomes.tell(status.state, status.error_message)
