"""Follows a run until it ends: shows what each step does and waits for, and finally the result."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from kws.kube.errors import KubeError, NotFound
from kws.kube.log_lines import LineSorter
from pipeline.cluster.argo_steps import FINISHED, Step, duration, nth, outcome, steps_of
from pipeline.cluster.connect import Cluster, kubeflow_errors
from pipeline.cluster.fit import LIMIT_RANGE
from pipeline.cluster.results import artifacts_of, console, out, show_result, used
from pipeline.cluster.run_pods import Pods, Tail, Wait
from pipeline.shell import ClusterError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run

POLL_SECONDS = 3.0
AWAY_SECONDS = 600.0
"""How long the API may be away while a run is followed."""

PATIENCE_MINUTES = 15.0
"""Default of --patience: how long to watch a pod that waits for what will not come by itself."""

TRAIL_SECONDS = 15.0
"""How long the tasks of a finished run may take to report that they have finished too."""

MAX_NEW_LINES = 15
"""How many new lines of a step's log are printed at most, every three seconds."""

NUM_FIRST_LINES = 5
"""How many of them are the first ones: they say which job was submitted or adopted, and where training resumes."""

NUM_LAST_LINES = 20
"""Lines of a failed step's log that are shown at the end of a run."""

PAST_DEADLINE = ("longer than the specified deadline", "exceeded its deadline", "exceeded workflow deadline")
"""What Kubernetes and Argo say of a pod, a step and a run that go past the deadline of the run."""

COLORS = {"SUCCEEDED": "green", "FAILED": "red", "CANCELED": "yellow", "RUNNING": "cyan"}
WORDS = {"CANCELED": "cancelled", "SKIPPED": "not run"}


@dataclass
class Following:
    """A run that is being followed."""

    cluster: Cluster
    run_id: str
    names: Sequence[str]
    """The steps in their order."""
    short_id: str = ""
    patience: float = PATIENCE_MINUTES
    """Minutes."""
    quiet: bool = False
    """Without a terminal, print changes of state only, and no lines of logs."""

    introduction: Sequence[str] = ()
    """Lines that are printed first."""

    printed: set[str] = field(default_factory=set)
    tails: dict[str, Tail] = field(default_factory=dict)
    last_line: dict[str, str] = field(default_factory=dict)
    waiting_since: dict[str, float] = field(default_factory=dict)
    shown_waits: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.short_id = self.short_id or self.run_id[:8]
        self.pods = Pods(self.cluster, self.run_id)

    def introduce(self) -> None:
        """Prints the first lines, whole, so that ids and links can be copied."""
        for line in self.introduction:
            out.print(line, soft_wrap=True)

    def run(self) -> int:
        """Shows the run until it ends.

        Returns:
            0 if it succeeded; 1 if it did not, or is stuck; 130 if Ctrl-C stopped following.
        """
        try:
            self.introduce()
            with Live(console=console, auto_refresh=False, transient=True) as live:
                for details in watch(self.cluster, self.run_id):
                    steps = self._look(details)
                    waits = [] if details.state in FINISHED else self.pods.waits(steps)
                    if console.is_terminal:
                        said = [Text(f"{wait.step} {wait}", style="yellow") for wait in waits]
                        live.update(Group(step_table(steps, self.last_line), *said), refresh=True)
                    else:
                        self._print(steps, waits)
                    if stuck := self._stuck(waits):
                        break
                else:
                    stuck = None
        except KeyboardInterrupt:
            console.print(
                f"\nno longer following; the run continues "
                f"(make follow RUN={self.short_id}, python -m pipeline cancel {self.short_id})",
                soft_wrap=True,
            )
            return 130
        except KubeError:  # the API refuses or is gone, which the caller explains
            again = f"make follow RUN={self.short_id}"
            console.print(f"no longer following; the run does not end by this ({again})", soft_wrap=True)
            raise
        if stuck:
            where = f"kubectl -n {self.cluster.namespace} describe pod {stuck.pod}"
            console.print(f"[red]{escape(stuck.step)} {escape(str(stuck))}[/]", soft_wrap=True)
            console.print(
                f"It has waited for {self.patience:g} minutes (--patience), and waiting longer will not "
                f"help: {escape(stuck.remedy)} ({where}).\nThe run is still waiting: "
                f"make follow RUN={self.short_id}, python -m pipeline cancel {self.short_id}",
                soft_wrap=True,
            )
            return 1
        return self._end(details, steps)

    def _look(self, details: "V2beta1Run") -> list[Step]:
        """Returns the current steps, and reads the new lines of their logs."""
        self.pods.look()
        steps = steps_of(details, self.names)
        if details.state not in FINISHED:
            steps = self.pods.updated(steps)
        steps = self.pods.located(steps)
        if self.pods.problem:
            self._once(f"[yellow]logs and waits of pods are not shown: {escape(self.pods.problem)}[/]")
        for step in steps:
            if step.state == "PENDING" or not step.attempts:
                continue
            if not console.is_terminal:
                self._once(f"{step.name:<10} running", key=f"{step.name} RUNNING")
            for number, node in enumerate(step.attempts, 1):
                pod, uid = self.pods.pod_of(node)
                if pod and (node not in self.tails or self.tails[node].uid != uid):
                    self.tails[node] = Tail(self.pods, pod, uid)
                    if number > 1 and (why := self.pods.endings(step)[number - 2]):
                        self._once(f"{step.name:<10} {nth(number)} attempt, as the one before ended: {escape(why)}")
            if (tail := self.tails.get(step.attempts[-1])) and f"end {tail.uid}" not in self.printed:
                if step.state in FINISHED:  # read a last time
                    self.printed.add(f"end {tail.uid}")
                if lines := [line for line in tail() if line.strip()]:
                    self.last_line[step.name] = lines[-1]
                    self._print_lines(step.name, lines)
        return steps

    def _print_lines(self, step: str, lines: Sequence[str]) -> None:
        if console.is_terminal or self.quiet:
            return
        self.shown_waits.update(line.partition("waits: ")[2] for line in lines)  # the train step says it too
        if (more := len(lines) - MAX_NEW_LINES) > 0:
            lines = [*lines[:NUM_FIRST_LINES], f"… {more} lines", *lines[NUM_FIRST_LINES + more :]]
        for line in lines:
            console.print(f"{step:<10} │ {line}", markup=False, soft_wrap=True)

    def _print(self, steps: Iterable[Step], waits: Iterable[Wait], over: bool = False) -> None:
        for step in steps:
            # While a run is in progress, a failed step failed before the run was retried, or will be retried itself.
            if step.state in ("RUNNING", "SUCCEEDED") or (over and step.state in ("FAILED", "CANCELED")):
                spent = f", {duration(step.start, step.end)}" if step.end else ""
                self._once(f"{step.name:<10} {_word(step.state)}{spent}", key=f"{step.name} {step.state}")
        for wait in waits:
            if not (wait.training and wait.reason in self.shown_waits):
                self._once(f"{wait.step:<10} {escape(str(wait))}")

    def _once(self, text: str, key: str = "") -> None:
        if (key or text) not in self.printed:
            self.printed.add(key or text)
            console.print(text, soft_wrap=True)

    def _stuck(self, waits: Iterable[Wait]) -> Wait | None:
        """Returns a wait that will not resolve by itself and has lasted too long."""
        now, lasting = time.monotonic(), {wait.pod: wait for wait in waits if wait.remedy}
        self.waiting_since = {pod: self.waiting_since.get(pod, now) for pod in lasting}
        late = [pod for pod, since in self.waiting_since.items() if now - since >= 60 * self.patience]
        return lasting[late[0]] if late else None

    def _end(self, details: "V2beta1Run", steps: list[Step]) -> int:
        """Shows how a run ended."""
        until = time.monotonic() + TRAIL_SECONDS
        while not _settled(details, steps) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            details = next(watch(self.cluster, self.run_id))
            steps = self._look(details)
        # Where pods are refused, Kubeflow lists no step that came before, or lists its refused attempts alone.
        for index, step in enumerate(steps):
            if step.state in ("PENDING", "SKIPPED", "FAILED"):
                (by_pods,) = self.pods.updated([Step(name=step.name)])
                if by_pods.state == "SUCCEEDED":
                    steps[index] = by_pods
                elif step.state == "PENDING":
                    steps[index] = replace(step, state="SKIPPED")
        if not console.is_terminal:
            self._print(steps, [], over=True)
        succeeded = [step for step in steps if step.state == "SUCCEEDED"]
        out.print(step_table(steps, {step.name: used(artifacts_of(self._log(step))) for step in succeeded}, self.pods))
        state = outcome(details)
        if state == "SUCCEEDED" and _had_nothing_new(steps):
            out.print("nothing new: data and recipe are those of a version that there is, so nothing was trained")
            return 0
        if state == "SUCCEEDED":
            show_result(self.cluster, self.run_id, self._artifacts(steps))
            return 0
        if state == "CANCELED":
            console.print(
                f"[yellow]the run was cancelled[/]; make retry RUN={self.short_id} resumes at the step that was "
                "stopped",
                soft_wrap=True,
            )
            return 1
        self._show_failure(details, steps)
        return 1

    def _show_failure(self, details: "V2beta1Run", steps: Iterable[Step]) -> None:
        """Prints why a run failed: the last lines of the step, and what Kubernetes and the API say; never nothing."""
        reasons = []
        failed = [step for step in steps if step.state == "FAILED"]
        for step in failed:
            lines = [line for line in LineSorter().own(self._log(step)) if line.strip()][-NUM_LAST_LINES:]
            if lines:
                out.print(f"\n[bold]{step.name}[/]")
                for line in lines:
                    out.print(line, markup=False, soft_wrap=True)
                if pod := self.pods.pod_of(step.attempts[-1])[0]:
                    out.print(
                        f"[dim](all of it: kubectl -n {self.cluster.namespace} logs {pod} -c main)[/]", soft_wrap=True
                    )
            why = step.error or (self.pods.endings(step) or [""])[-1]
            if why or lines:
                reasons.append(f"{step.name}{f': {why}' if why else ', in its own words above'}")
        said = details.error.message if details.error and details.error.message else ""
        if not reasons and not failed:
            messages = [message for message in self.pods.messages().values() if message]
            reasons = sorted(messages, key=lambda message: "forbidden" not in message)[:1]
        reason = "; ".join(filter(None, (said, *reasons))) or (
            f"neither the API nor a pod says why ({', '.join(step.name for step in failed) or 'no step'} failed; logs "
            "and pods are kept for an hour after the end)"
        )
        remedy = f"; {LIMIT_RANGE}" if "must specify" in reason else ""
        console.print(f"[red]the run failed[/]{' at' if failed else ':'} {escape(reason)}{remedy}", soft_wrap=True)
        if any(said in reason for said in PAST_DEADLINE):
            console.print(
                "the deadline of a run counts from its first start, so make retry cannot resume this one; "
                "make pipeline starts another, to which KWS_DEADLINE_HOURS may give more time",
                soft_wrap=True,
            )
            return
        console.print(
            f"make retry RUN={self.short_id} resumes at the step that failed, with the settings of this run; others "
            "(MEMORY=, CPU=, NUM_NODES= …) need a new one: make pipeline",
            soft_wrap=True,
        )

    def _log(self, step: Step) -> list[str]:
        """Returns the log of the last attempt of a step, from Kubernetes or from what Kubeflow Pipelines kept."""
        if not step.attempts:
            return []
        node = step.attempts[-1]
        if (pod := self.pods.pod_of(node)[0]) and (lines := self.pods.log(pod)):
            return lines
        workflow, _, digest = node.rpartition("-")
        pod = f"{workflow}-system-container-impl-{digest}"
        for path in (
            f"apis/v1alpha1/runs/{self.run_id}/nodes/{node}/log",  # the API server
            f"k8s/pod/logs?podname={pod}&runid={self.run_id}&podnamespace={self.cluster.namespace}",
        ):  # the UI
            try:
                kept = self.cluster.read(path).decode(errors="replace")
            except KubeError:
                continue
            if "ExecutorOutput" in kept or "KFP Executor" in kept:  # neither a page nor an error
                return kept.splitlines()
        return []

    def _artifacts(self, steps: Iterable[Step]) -> dict[str, dict[str, Any]]:
        return {
            name: artifact
            for step in steps
            if step.name in ("evaluate", "promote")
            for name, artifact in artifacts_of(self._log(step)).items()
            if (step.name, name) != ("promote", "metrics")  # the results of the run are those of evaluate
        }


def _settled(details: "V2beta1Run", steps: Sequence[Step]) -> bool:
    """Tells whether the states of the steps agree with that of the run, which they trail by some seconds."""
    states = {step.state for step in steps}
    if details.state == "SUCCEEDED":
        return states - (set(_NOT_RUN) if _had_nothing_new(steps) else set()) == {"SUCCEEDED"}
    return "RUNNING" not in states and bool(states & {"FAILED", "CANCELED"})


def _had_nothing_new(steps: Iterable[Step]) -> bool:
    """Tells whether a run ended before training, as no data and no settings were new."""
    states = {step.name: step.state for step in steps}
    return states.get("changes") == "SUCCEEDED" and states.get("train") in _NOT_RUN


_NOT_RUN = ("SKIPPED", "PENDING")
"""States of a step that a condition leaves out: Kubeflow Pipelines may not list it at all."""


def _word(state: str) -> str:
    return WORDS.get(state, state.lower())


def watch(cluster: Cluster, run_id: str) -> "Iterator[V2beta1Run]":
    """Yields a run every few seconds until it has finished.

    An API that is away for a while is waited for, and so is a right to read the run that was there before.

    Raises:
        KubeError: the API refuses, or is away for too long.
        ClusterError: the run was deleted meanwhile.
    """
    answered, reason, seen = time.monotonic(), "", False
    while True:
        try:
            with kubeflow_errors():
                details = cluster.client.get_run(run_id)
        except NotFound as error:
            if not seen:
                raise
            raise ClusterError(f"the run must not be deleted while it is followed, got {error}") from error
        except KubeError as error:
            if error.status == 401 or not seen or time.monotonic() - answered > AWAY_SECONDS:
                raise
            if (said := str(error)) != reason:
                console.print(f"no answer, trying again: {escape(said)}", soft_wrap=True)
                reason = said
        else:
            answered, reason, seen = time.monotonic(), "", True
            yield details
            if details.state in FINISHED:
                return
        time.sleep(POLL_SECONDS)


def step_table(steps: Iterable[Step], logs: Mapping[str, str], pods: Pods | None = None) -> Table:
    """Returns a table of the steps: name, state, duration, and the last log line, or the attempts and why they ended.

    `logs` has by step the last line of its log, or what it used. Without pods it is left out why attempts ended.
    """
    table = Table(box=None, pad_edge=False)
    for name, width in (("step", 10), ("state", 9), ("time", 12)):  # a long line of a log must not squeeze them
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("", no_wrap=pods is None, overflow="ellipsis" if pods is None else "fold", ratio=1)
    for step in steps:
        text = step.error or logs.get(step.name, "")
        if (number := len(step.attempts)) > 1:
            why = ", ".join(dict.fromkeys(filter(None, pods.endings(step)))) if pods else ""
            text = f"{nth(number)} attempt{f', ended before: {why}' if why else ''}" + (f"; {text}" if text else "")
        table.add_row(
            step.name,
            f"[{COLORS.get(step.state, 'dim')}]{_word(step.state)}[/]",
            duration(step.start, step.end),
            escape(text),
        )
    return table
