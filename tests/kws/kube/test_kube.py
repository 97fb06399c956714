"""The client of the Kubernetes API, over real HTTP, and what it makes of answers, pods and logs."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from json_server import JsonServer, running

from kws.kube import pods
from kws.kube.client import PODS, QUOTAS, Api, Resource
from kws.kube.errors import Conflict, KubeError, NotFound, Refused, Unreachable, error_of
from kws.kube.log_lines import LineSorter
from kws.kube.pod_logs import PodLog, split_lines


class Server(JsonServer):
    """Gives the answers that a test lays out, the last one for ever."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        super().__init__()

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes, headers: Any) -> tuple[int, Any]:
        self.calls.append((method, path, query))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def server() -> Iterator[Server]:
    with running(Server((200, {"items": []}))) as started:
        yield started


@pytest.fixture
def api(server: Server) -> Api:
    return Api.at(server.address)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0, Unreachable),
        (408, Unreachable),
        (429, Unreachable),
        (500, Unreachable),
        (503, Unreachable),
        (401, Refused),
        (403, Refused),
        (422, Refused),
        (404, NotFound),
        (409, Conflict),
    ],
)
def test_an_answer_is_one_of_four_errors_by_its_status(status: int, kind: type[KubeError]) -> None:
    assert type(error_of(status, "", b"")) is kind


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (json.dumps({"message": "pods is\n forbidden"}), "status 403: pods is forbidden"),
        (b"Jwt is \x1b[2Jexpired", r"status 403: Jwt is \x1b[2Jexpired"),
        ("<html>log in</html>", "status 403: Forbidden"),
        ("x" * 1000, "status 403: Forbidden"),
        ('["no message"]', 'status 403: ["no message"]'),
        (None, "status 403: Forbidden"),
    ],
)
def test_an_error_has_the_words_of_the_api_or_else_those_of_the_status(body: Any, words: str) -> None:
    assert str(error_of(403, "Forbidden", body)) == words


def test_a_refusal_reaches_the_caller_as_an_error_of_ours(server: Server, api: Api) -> None:
    server.answers = [(403, {"message": "pods is forbidden"})]
    with pytest.raises(Refused, match=r"^status 403: pods is forbidden$"):
        api.list(PODS, "team", labelSelector="a=b")
    assert server.calls == [("GET", "/api/v1/namespaces/team/pods", {"labelSelector": "a=b"})]


def test_an_address_where_nobody_answers_is_told_whole_without_the_pools_of_urllib3() -> None:
    with pytest.raises(Unreachable) as failed:
        Api.at("http://127.0.0.1:9").list(PODS)
    assert str(failed.value) == "Failed to establish a new connection: [Errno 111] Connection refused"


def test_objects_are_found_made_changed_and_deleted_by_their_paths(server: Server, api: Api) -> None:
    jobs = Resource("pytorchjobs", "kubeflow.org")
    api.get(jobs, "a", "j")
    api.create(jobs, {"metadata": {"namespace": "a"}})
    api.patch(jobs, "a", "j", {"metadata": {}})
    api.delete(jobs, "a", "j")
    path = "/apis/kubeflow.org/v1/namespaces/a/pytorchjobs"
    foreground = {"propagationPolicy": "Foreground"}
    assert server.calls == [
        ("GET", f"{path}/j", {}),
        ("POST", path, {}),
        ("PATCH", f"{path}/j", {}),
        ("DELETE", f"{path}/j", foreground),
    ]


def test_an_object_that_is_missing_is_none_and_deleting_it_does_nothing(server: Server, api: Api) -> None:
    server.answers = [(404, {"message": "not found"})]
    assert api.find(QUOTAS, "a", "q") is None
    api.delete(QUOTAS, "a", "q")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_api_that_is_away_for_a_while_is_asked_again(
    status: int, server: Server, api: Api, capfd: pytest.CaptureFixture[str]
) -> None:
    server.answers = [(status, {"message": "webhook"}), (200, {"items": [1]})]
    assert api.patient(60).list(PODS) == [1]
    said = "the Kubernetes API does not answer as it should, trying again in 1 s: webhook\n"
    assert capfd.readouterr().err == said


@pytest.mark.parametrize("status", [403, 404, 409, 422])
def test_an_answer_that_will_not_change_is_not_waited_out(status: int, server: Server, api: Api) -> None:
    server.answers = [(status, {"message": "no"})]
    with pytest.raises(KubeError):
        api.patient(60).get(PODS, "a", "p")
    assert len(server.calls) == 1


def test_a_missing_right_is_waited_out_where_the_caller_says_so(server: Server, api: Api) -> None:
    server.answers = [(403, {"message": "no"}), (200, {"items": [1]})]
    assert api.patient(60, Refused).list(PODS) == [1]


def test_patience_ends(server: Server, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.answers = [(500, {"message": "no"})]
    with pytest.raises(Unreachable):
        api.patient(0.05).list(PODS)


# Logs


def log_of(api: Api) -> PodLog:
    return PodLog(api, "a", "p", "main")


def test_a_log_is_read_on_without_the_times_of_the_kubelet_and_without_its_complaints(server: Server, api: Api) -> None:
    first = b"2024-05-01T10:00:00Z a\n2024-05-01T10:00:00.05+01:00 b  c\n2024-05-01T10:00:00.1Z \n"
    server.answers = [
        (200, first),
        (200, first + b"2024-05-01T09:00:00Z d\nunable to retrieve container logs for containerd://8c2\n"),
    ]
    log = log_of(api)
    assert list(log.read()) == ["a", "b  c", ""]
    assert list(log.read()) == ["d"]
    assert server.calls[0] == ("GET", "/api/v1/namespaces/a/pods/p/log", {"container": "main", "timestamps": "true"})
    assert int(server.calls[1][2]["sinceSeconds"]) >= 5


def test_a_log_that_there_is_not_yet_is_an_error_of_ours(server: Server, api: Api) -> None:
    server.answers = [(400, {"message": 'container "main" is waiting to start'})]
    with pytest.raises(Refused, match="waiting to start"):
        list(log_of(api).read(follow=True))


def test_lines_come_whole_however_the_stream_was_cut() -> None:
    text = "first\nzweite Zeile: ä\n\nlast".encode()
    for size in (1, 2, 3, 7, 100):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(split_lines(pieces)) == ["first", "zweite Zeile: ä", "", "last"]


# Pods


def pod(container: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    if container is not None:
        status["containerStatuses"] = [{"name": "main", **container}]
    return {"metadata": {"name": "p"}, "status": status}


def test_a_pod_says_why_it_waits_and_nothing_while_it_runs() -> None:
    image = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "kws-runtime:0.2.0"'}}
    assert pods.waiting_reason(pod({"state": image})) == 'ImagePullBackOff: Back-off pulling image "kws-runtime:0.2.0"'
    init = [{"name": "init-pytorch", "state": {"waiting": {"reason": "ErrImagePull"}}}]
    assert pods.waiting_reason(pod(initContainerStatuses=init)) == "ErrImagePull"
    assert pods.waiting_reason(pod({"state": {"running": {"startedAt": "2024-05-01T10:00:00Z"}}})) == ""
    assert pods.waiting_reason({"metadata": {"name": "p"}}) == ""


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (pod(phase="Failed", reason="Evicted", message="low on memory"), "Evicted: low on memory"),
        (pod({"state": {"terminated": {"exitCode": 1, "reason": "Error"}}}, phase="Failed"), "status 1"),
        (pod({"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}), "OOMKilled (status 137)"),
        (pod(phase="Succeeded"), ""),
        (pod(phase="Failed"), None),
    ],
)
def test_a_pod_says_how_it_ended_if_it_tells(seen: dict[str, Any], why: str | None) -> None:
    assert pods.pod_ending(seen, "main") == why


# Lines of others


@pytest.mark.parametrize(
    "line",
    [
        'time="2026-11-25T19:38:23.123Z" level=info msg="capturing logs" argo=true',
        "I1125 19:38:23.123456      12 launcher_v2.go:151] publish success.",
        "W1125 19:38:25.964000 1049 torch/distributed/elastic/multiprocessing/api.py:1012] closing signal SIGTERM",
        "[E1125 19:38:47.503025956 ProcessGroupGloo.cpp:67] Gloo connectFullMesh failed",
        'E1126 11:45:02.400799   10287 memcache.go:265] "Unhandled Error" err="connection refused"',
        "[/pytorch/third_party/gloo/gloo/transport/tcp/debug_logger.cc:9] ERROR failed to connect, willRetry=1",
        "[KFP Executor 2026-11-25 19:38:23,123 INFO]: Looking for component `train`",
        "frame #1: c10::Error::Error",
        "Error: exit status 1",
        "",
    ],
)
def test_lines_of_libraries_argo_and_kubeflow_are_told_from_a_programs_own(line: str) -> None:
    assert LineSorter().kind(line) == "foreign"
    assert LineSorter().kind("epoch 1/8: loss 2.1, validation accuracy 43%") == "own"


def test_a_dump_and_a_summary_are_foreign_to_their_ends() -> None:
    lines = ["I1125 19:38:23.123456 12 launcher.go:1] ExecutorOutput: {", '  "a": 1', "}", "own", "x.ChildFailedError:"]
    assert list(LineSorter().own([*lines, "=" * 60, "kws.train.trainer FAILED"])) == ["own"]
