from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
import yaml
from cluster_stand_in import StandIn


@pytest.fixture
def use_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a kubeconfig with a context for each server the one that commands read; the first is the current one."""

    def use(**servers: str) -> None:
        names = [name.replace("_", "-") for name in servers]
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": names[0],
            "contexts": [{"name": name, "context": {"cluster": name, "user": "me"}} for name in names],
            "clusters": [
                {"name": name, "cluster": {"server": server}}
                for name, server in zip(names, servers.values(), strict=True)
            ],
            "users": [{"name": "me", "user": {}}],
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(path))
        # The client of Kubeflow Pipelines reads the variable but once, when kubernetes is imported.
        monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))

    return use


@pytest.fixture
def stand_in(use_kubeconfig: Callable[..., None]) -> Iterator[StandIn]:
    with StandIn() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        use_kubeconfig(here=server.address)
        yield server
        server.shutdown()
