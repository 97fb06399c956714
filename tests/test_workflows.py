"""The workflows of .github: what their make targets need."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_targets_that_need_a_kubeconfig_get_one() -> None:
    makefile = (ROOT / "Makefile").read_text()
    guarded = set(re.findall(r"^([a-z0-9-]+):.*\n\t@test -n \"\$\$\{KUBECONFIG:-\}\"", makefile, flags=re.M))
    assert guarded == {"test-cluster", "e2e-cluster", "e2e-retries"}
    commands = [
        step["run"]
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if step.get("run", "").startswith("make ")
    ]
    needing = [command for command in commands if guarded & set(command.split())]
    assert needing
    assert [command for command in needing if "KUBECONFIG=" not in command] == []
