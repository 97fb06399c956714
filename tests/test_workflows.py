"""The workflows of .github, .ci/run and the pages call make targets that there are, with what these need."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {target for line in re.findall(r"^\.PHONY: (.*)", MAKEFILE, flags=re.M) for target in line.split()}
CALLERS = [
    ROOT / ".ci" / "run",
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for folder in (".github", "docs", "research") for path in (ROOT / folder).rglob("*.[my][dm]*")),
    *(
        path
        for folder in ("src", "pipeline", "benchmarks", "research", "tests")
        for path in (ROOT / folder).rglob("*.py")
    ),
]


def test_what_is_made_can_be_made() -> None:
    """Targets are named in code spans and blocks, in workflows, and in brackets or after a semicolon of a message."""
    commands = re.compile(r"(?:[`(]|[;:] |&& |^)make ([a-z][a-z0-9-]*)(?= *(?:[A-Z_]+=|$|[`#&);,.]))", flags=re.M)
    made = {name: path for path in CALLERS for name in commands.findall(path.read_text())}
    assert {"demo", "test", "kind-up", "pipeline", "retry"} <= set(made)
    assert {name: path for name, path in made.items() if name not in TARGETS} == {}


def test_targets_that_need_a_kubeconfig_get_one() -> None:
    guarded = set(re.findall(r"^([a-z0-9-]+):.*\n\t@test -n \"\$\$\{KUBECONFIG:-\}\"", MAKEFILE, flags=re.M))
    assert guarded == {"test-cluster"}
    commands = [
        step["run"]
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for job in yaml.safe_load(path.read_text())["jobs"].values()
        for step in job["steps"]
        if "run" in step
    ]
    needing = [command for command in commands if guarded & set(command.split()) or "test_live_cluster.py" in command]
    assert needing
    assert [command for command in needing if "KUBECONFIG=" not in command] == []
