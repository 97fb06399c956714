"""Chooses the launcher of a training: torchrun without a cluster, a PyTorchJob or a TrainJob on a cluster.

No other code depends on the choice. Launchers need no torch, as the train step runs in an image without it.
"""

import os

from kws.launch.job import Launcher
from kws.launch.torchrun import TorchrunLauncher
from kws.settings import require

LAUNCHERS = ("torchrun", "pytorchjob", "trainjob")


def launcher() -> Launcher:
    """Returns the launcher for this environment: a PyTorchJob in a pod of a cluster, torchrun elsewhere.

    The environment variable KWS_LAUNCHER (torchrun, pytorchjob, or trainjob for Kubeflow Trainer v2) overrides this.

    Raises:
        ValueError: KWS_LAUNCHER has another value, or KWS_PYTORCHJOB is not valid.
    """
    here = "pytorchjob" if "KUBERNETES_SERVICE_HOST" in os.environ else "torchrun"
    choice = os.environ.get("KWS_LAUNCHER") or here
    require(choice in LAUNCHERS, "KWS_LAUNCHER", f"be {', '.join(LAUNCHERS[:-1])} or {LAUNCHERS[-1]}", choice)
    if choice == "torchrun":
        return TorchrunLauncher()

    from kws.launch.cluster_config import ClusterConfig
    from kws.launch.kinds.pytorchjob import PYTORCH_JOB
    from kws.launch.kinds.trainjob import TRAIN_JOB
    from kws.launch.submit import ClusterLauncher

    return ClusterLauncher(PYTORCH_JOB if choice == "pytorchjob" else TRAIN_JOB, ClusterConfig.from_environment())
