"""Chooses what starts a training: torchrun where there is no cluster, a PyTorchJob or a TrainJob where there is one.

Nothing else in the code knows the difference. No launcher needs torch: the step that launches a job runs in an image
without it.
"""

import os

from kws.config import require
from kws.launch.job import Launcher
from kws.launch.torchrun import TorchrunLauncher

LAUNCHERS = ("torchrun", "pytorchjob", "trainjob")


def launcher() -> Launcher:
    """Returns what starts a training here: a PyTorchJob inside a cluster, torchrun elsewhere.

    The environment variable KWS_LAUNCHER (torchrun, pytorchjob, or trainjob for Kubeflow Trainer v2) decides otherwise.

    Raises:
        ValueError: KWS_LAUNCHER is none of them, or KWS_PYTORCHJOB does not describe the cluster.
    """
    here = "pytorchjob" if "KUBERNETES_SERVICE_HOST" in os.environ else "torchrun"
    choice = os.environ.get("KWS_LAUNCHER") or here
    require(choice in LAUNCHERS, "KWS_LAUNCHER", f"be {', '.join(LAUNCHERS[:-1])} or {LAUNCHERS[-1]}", choice)
    if choice == "torchrun":
        return TorchrunLauncher()

    from kws.launch.pytorchjob import PYTORCH_JOB
    from kws.launch.settings import ClusterConfig
    from kws.launch.submit import ClusterLauncher
    from kws.launch.trainjob import TRAIN_JOB

    return ClusterLauncher(PYTORCH_JOB if choice == "pytorchjob" else TRAIN_JOB, ClusterConfig.from_environment())
