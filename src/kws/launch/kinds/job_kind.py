"""What `ClusterLauncher` needs to know of a kind of training job."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kws.kube.client import Resource
from kws.launch.cluster_config import ClusterConfig
from kws.launch.job import Training


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """A kind of training job."""

    kind: str
    resource: Resource

    operator: str
    """What must be installed on the cluster, for error messages."""

    lacking: str
    """Remedy if the operator is too old to know a field of the job."""

    dispensable: Mapping[str, str] = field(default_factory=dict)
    """Fields of the job's spec that an older operator may lack, and what is said when the job goes without."""

    container: str
    """Name of the container that trains."""

    name_label: str
    """Pod label that holds the name of the job."""

    rank_label: str
    """Pod label that holds the number of the pod in the job."""

    pods_made_by: Callable[[str], str]
    """Maps the name of a job to that of the object whose events say why there are no pods."""

    build: Callable[[Training, ClusterConfig, Mapping[str, Any] | None], dict[str, Any]]
    """Builds the manifest of a job, to be deleted with an owner (an ownerReference), if there is one."""

    def node_rank(self, pod: Mapping[str, Any]) -> int:
        """Returns the number of a pod in the job."""
        return int(pod["metadata"]["labels"][self.rank_label])
