"""Finds the steps of a run among the tasks that Kubeflow Pipelines lists.

Argo creates several nodes for every step, and Kubeflow Pipelines lists each as a task with nothing but the last part of
the node's name and the ids of its children. With the settings of Argo that Kubeflow Pipelines brings, every node is
retried when its pod vanishes. Then the step `train` of the workflow `w` consists of

    w(0).root(0).train           a node that may be retried
    w(0).root(0).train(0)        its first attempt, which has
    w(0).root(0).train(0).executor           a node that may be retried
    w(0).root(0).train(0).executor(0)        a pod, and (1) the pod of the second attempt
    w(0).root(0).train-driver(0)             the pod that prepares it

With other settings it is just `w.root.train.executor`. Steps in a condition or an exit handler have its name in front
of theirs, `w(0).root(0).condition-1(0).train(0)`. A node's id is a digest of its name, which tells them apart.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

FINISHED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")

LOOPED = "features"
"""The step that runs in a loop, once for each shard. It is listed once for each, and ends with the loop."""

_LOOP = re.compile(r"for-loop-\d+")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a run."""

    name: str
    state: str = "PENDING"
    start: datetime | None = None
    end: datetime | None = None
    error: str = ""
    attempts: tuple[str, ...] = ()
    """Ids of the nodes that are its pods, the first attempt first."""


def node_id(name: str) -> str:
    """Returns the id that Argo gives a node: the workflow and the 32-bit FNV-1a digest of the node's name."""
    workflow = re.split(r"[.(]", name, maxsplit=1)[0]
    digest = 0x811C9DC5
    for byte in name.encode():
        digest = (digest ^ byte) * 0x01000193 & 0xFFFFFFFF
    return workflow if name == workflow else f"{workflow}-{digest}"


def step_of_node(name: str, steps: Iterable[str]) -> str:
    """Returns the step to which a node belongs by its name, in either form; "" if it belongs to none."""
    parts = [re.sub(r"\(\d+\)$", "", part) for part in name.split(".")]
    return next((step for step in steps if step in parts or f"{step}-driver" in parts), "")


def is_driver(node: str) -> bool:
    """Tells whether a node is a driver: Kubeflow's own pod that prepares a step, or the run (root-driver)."""
    return _task_of(node).endswith("-driver")


def is_root_driver(node: str) -> bool:
    """Tells whether a node is the driver of the run, which must end before any step begins."""
    return _task_of(node).endswith("root-driver")


def _task_of(node: str) -> str:
    """Returns the last part of the name of a node, without the number of the attempt."""
    return re.sub(r"\(\d+\)$", "", node.rpartition(".")[2])


def outcome(run: "V2beta1Run") -> str:
    """Returns the state of a run; CANCELED if it was cancelled, where the API says FAILED."""
    state = run.state or "PENDING"
    before = [each.state for each in run.state_history or [] if each.state not in FINISHED]
    return "CANCELED" if state == "FAILED" and before and before[-1] == "CANCELING" else state


def steps_of(details: "V2beta1Run", names: Sequence[str]) -> list[Step]:
    """Finds the steps among the tasks of a run.

    `names` are those of the steps in their order; steps that have not begun are returned as well.
    """
    tasks = (details.run_details.task_details or []) if details.run_details else []
    cancelled = outcome(details) == "CANCELED"
    found = {name: Step(name=name) for name in names}
    for task in sorted(tasks, key=lambda task: (task.create_time or _NEVER, task.start_time or _NEVER)):
        name = task.display_name or ""
        if name == LOOPED:
            continue
        name = LOOPED if _LOOP.fullmatch(name) else name
        # A task without a state was skipped, because one that it depends on failed.
        if name in found and (state := task.state):
            if state == "FAILED" and cancelled:
                state = "CANCELED"
            error = task.error.message if task.error and task.error.message else ""
            found[name] = Step(
                name=name,
                state=state,
                start=time_of(task.start_time),
                end=time_of(task.end_time),
                error=error,
                attempts=tuple(_attempts(tasks, name)),
            )
        elif name in found and details.state in FINISHED:
            found[name] = Step(name=name, state="SKIPPED")
    return list(found.values())


def _attempts(tasks: "Sequence[V2beta1PipelineTaskDetail]", step: str) -> Iterator[str]:
    """Yields the ids of the pods of a step: children of its executors, found by the names that they must have."""
    workflow = next((child.pod_name.rpartition("-")[0] for task in tasks for child in task.child_tasks or []), "")
    children = {child.pod_name for task in tasks for child in task.child_tasks or []}
    most, found = range(_MOST_ATTEMPTS), {task.display_name or "" for task in tasks}
    groups = sorted((name for name in found if re.fullmatch(r"(exit-handler|condition)-\d+", name)), reverse=True)
    for inside in dict.fromkeys([(), *((group,) for group in groups), tuple(groups)]):
        plain = ".".join((workflow, "root", *inside, step, "executor"))  # with Argo's own settings, or a retry policy
        paths = [
            "".join((f"{workflow}({i}).root({j})", *map(".{}({})".format, inside, numbers), f".{step}({k}).executor"))
            for i, j, k in itertools.product(most, most, most)
            for numbers in itertools.product(range(2), repeat=len(inside))
        ]
        for executor in (plain, *paths):
            if node_id(executor) in children:
                again = [each for i in most if (each := node_id(f"{executor}({i})")) in children]
                yield from again or [node_id(executor)]


_MOST_ATTEMPTS = 6
"""Attempts of one node; Kubeflow Pipelines allows three."""

_NEVER = datetime.min.replace(tzinfo=UTC)


def time_of(value: datetime | None) -> datetime | None:
    """Returns None for 1970 and before, which the API gives for what has not happened."""
    return value if value is not None and value.year > 1970 else None


def duration(start: datetime | None, end: datetime | None) -> str:
    """Formats a time span, such as 3 min 20 s; up to now if it has no end."""
    if start is None:
        return ""
    seconds = max(0, round(((end or datetime.now(UTC)) - start).total_seconds()))  # the clocks may differ
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def nth(number: int) -> str:
    """Returns 1st, 2nd, 3rd, …."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """Returns the beginning of each id: eight characters, or as many as tell it from the others."""
    ids = list(ids)
    length = next(n for n in range(8, 64) if len({each[:n] for each in ids}) == len(set(ids)))
    return {each: each[:length] for each in ids}


def pod_node(pod: Mapping[str, Any]) -> tuple[str, str]:
    """Returns id and name of the Argo node of a pod, or empty strings."""
    annotations = pod["metadata"].get("annotations") or {}
    name = str(annotations.get("workflows.argoproj.io/node-name", ""))
    return str(annotations.get("workflows.argoproj.io/node-id", "")), name
