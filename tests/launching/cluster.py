"""A Kubernetes cluster as far as a launch asks for one, on loopback: an API, and pods that really run.

Bodies are held to the client's models, rights to the Role of docker/kubernetes/training-setup.yaml. The
container of a pod is a process of this machine with the command and the variables that its manifest gives
it, and a disk of its own; it waits for the Secrets that it mounts. SIGTERM goes to its first process alone,
SIGKILL after the grace to all. A Job is Indexed and has one try: a pod that fails ends the others. Of a Job
that is deleted in the foreground the pods end first, and what it owns goes with it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import yaml

KUBERNETES = Path(__file__).parents[2] / "docker" / "kubernetes"
NAMESPACE, TOKEN = "jora", "planted-account-token"
IMAGE = {"JORA_HOME": "/var/lib/jora"}  # what the Dockerfile's ENV says
MODELS = {"jobs": "V1Job", "secrets": "V1Secret"}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass
class Pod:
    """A pod and its process."""

    job: str
    index: int
    spec: dict[str, Any]
    labels: dict[str, str]
    name: str = ""
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None
    waiting: str = "ContainerCreating"
    reason: str = "Error"
    message: str = ""
    ended: float = 0.0
    deleted: float = 0.0
    lines: list[bytes] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def group(self) -> list[psutil.Process]:
        """All processes of the container."""
        assert self.process
        found = []
        for each in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(each.pid) == self.process.pid:
                    found.append(each)
        return found

    def kill(self) -> None:
        for each in self.group() if self.process else []:
            with contextlib.suppress(psutil.Error):
                each.kill()

    def told(self) -> dict[str, Any]:
        """As the API tells it."""
        container = self.spec["containers"][0]["name"]
        if self.code is not None:
            reason = self.reason if self.code else "Completed"
            state = {"terminated": {"exitCode": self.code, "reason": reason, "message": self.message}}
        elif self.process:
            state = {"running": {"startedAt": now()}}
        else:
            state = {"waiting": {"reason": self.waiting}}
        status = {
            "name": container,
            "image": "",
            "imageID": "",
            "ready": True,
            "restartCount": 0,
            "state": state,
        }
        phase = "Running" if self.process else "Pending"
        return {
            "metadata": {
                "name": self.name,
                "labels": self.labels,
                "annotations": {"batch.kubernetes.io/job-completion-index": str(self.index)},
            },
            "spec": {**self.spec, "nodeName": f"node-{self.index}"},
            "status": {
                "phase": phase if self.code is None else "Succeeded" if self.code == 0 else "Failed",
                "containerStatuses": [status],
            },
        }


class Cluster:
    """The cluster; its pods end with the block.

    Args:
      folder: of the pods' disks.
      settings: ConfigMaps and Secrets by name.

    Attributes:
      written: path and body of what was made, in order.
      withheld: resources and verbs, as ``jobs create``, that the account may not use.
      full: whether the namespace's quota has no room for a Job.
      away: whether the API answers that it cannot.
      waiting, reason, message: why the containers of new pods wait, and have failed; of the reason StartError
        they do not run.
      late: by index, seconds after which a pod's node tells of its end.
      forgetful: whether pods that have ended well are gone at once.
      most: how many containers ran at once.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Mapping[str, str]]) -> None:
        self.folder, self.settings = folder, dict(settings)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: list[Pod] = []
        self.written: list[tuple[str, dict[str, Any]]] = []
        self.withheld: set[str] = set()
        self.full = self.away = self.forgetful = False
        self.late: dict[int, float] = {}
        self.waiting, self.reason, self.message, self.most = "ContainerCreating", "Error", "", 0
        self.lock = threading.RLock()
        self._ports: dict[str, int] = {}
        self._done: Counter[str] = Counter()
        setup = list(yaml.safe_load_all((KUBERNETES / "training-setup.yaml").read_text()))
        self.service = next(each for each in setup if each["kind"] == "Service")
        role = next(each for each in setup if each["kind"] == "Role")
        self.rights = {
            f"{resource} {verb}"
            for rule in role["rules"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        cluster = self

        class Handler(_Handler):
            it = cluster

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._ended = threading.Event()
        self.kubeconfig = folder / "kubeconfig"

    def __enter__(self) -> Cluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        context = {"cluster": "it", "user": "it", "namespace": NAMESPACE}
        server = f"http://127.0.0.1:{self._server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "contexts": [{"name": "it", "context": context}],
            "clusters": [{"name": "it", "cluster": {"server": server}}],
            "users": [{"name": "it", "user": {"token": TOKEN}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        for work in (self._server.serve_forever, self._control):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for pod in self.pods:
            pod.kill()

    def create(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        body["metadata"] |= {"uid": str(uuid.uuid4()), "namespace": NAMESPACE}
        name = body["metadata"]["name"]
        if kind == "secrets":
            data = {key: base64.b64decode(value).decode() for key, value in body["data"].items()}
            self.settings[name] = data
            return body
        self.jobs[name] = body
        for index in range(body["spec"]["completions"]):
            template = body["spec"]["template"]
            labels = {**template["metadata"]["labels"], "job-name": name}
            pod = Pod(name, index, template["spec"], labels, f"{name}-{index}-{uuid.uuid4().hex[:5]}")
            pod.waiting, pod.reason, pod.message = self.waiting, self.reason, self.message
            self.pods.append(pod)
        return body

    def delete(self, job: str) -> None:
        self.jobs[job]["metadata"].setdefault("deletionTimestamp", now())
        for pod in self.pods:
            if pod.job == job:
                self._end(pod)

    def pod(self, index: int) -> Pod:
        """The newest of this index."""
        return [pod for pod in self.pods if pod.index == index][-1]

    def _end(self, pod: Pod) -> None:
        if pod.deleted:
            return
        pod.deleted = time.monotonic()
        if pod.process and pod.code is None:
            with contextlib.suppress(ProcessLookupError):
                pod.process.send_signal(signal.SIGTERM)

    def _control(self) -> None:
        """What controllers and kubelets do, again and again."""
        while not self._ended.wait(0.1):
            with self.lock:
                for pod in list(self.pods):
                    self._keep(pod)
                for name, job in list(self.jobs.items()):
                    self._judge(name, job)

    def _keep(self, pod: Pod) -> None:
        if (
            pod.process is None
            and pod.code is None
            and not pod.deleted
            and pod.waiting == "ContainerCreating"
        ):
            self._start(pod)
        if pod.process and pod.code is None and pod.process.poll() is not None:
            pod.ended = pod.ended or time.monotonic()
            if time.monotonic() - pod.ended < self.late.get(pod.index, 0.0):
                return
            pod.kill()
            pod.closed.wait(10)
            code = pod.process.returncode
            pod.code = 128 - code if code < 0 else code
            self._done[pod.job] += pod.code == 0
            if self.forgetful and pod.code == 0:
                self.pods.remove(pod)
                return
        if pod.deleted:
            if pod.process is None or pod.code is not None:
                self.pods.remove(pod)
            elif time.monotonic() - pod.deleted > pod.spec["terminationGracePeriodSeconds"]:
                pod.kill()

    def _judge(self, name: str, job: dict[str, Any]) -> None:
        pods = [pod for pod in self.pods if pod.job == name]
        if "deletionTimestamp" in job["metadata"]:
            if not pods:
                del self.jobs[name]
                self.settings.pop(name, None)
            return
        if self._done[name] == job["spec"]["completions"]:
            job["status"] = {"conditions": [_condition("Complete", "CompletionsReached")]}
        elif any(pod.code for pod in pods) and "status" not in job:
            job["status"] = {"conditions": [_condition("Failed", "BackoffLimitExceeded")]}
            for pod in pods:
                if pod.code is None and not pod.ended:
                    self._end(pod)

    def _start(self, pod: Pod) -> None:
        if pod.reason == "StartError":
            pod.code = 128
            return
        [container] = pod.spec["containers"]
        volumes = {each["name"]: each for each in pod.spec["volumes"]}
        places: dict[str, str] = {}
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            named = (volume.get("secret") or {}).get("secretName") or (volume.get("configMap") or {}).get(
                "name"
            )
            if named and named not in self.settings:
                return  # kubelet tries again
            place = self.folder / pod.name / mount["name"]
            place.mkdir(parents=True, exist_ok=True)
            for file, text in self.settings[named].items() if named else ():
                (place / file).write_text(text)
            places[mount["mountPath"]] = str(place)
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | IMAGE
        for source in container["envFrom"]:
            environment |= self.settings[(source.get("configMapRef") or source["secretRef"])["name"]]
        environment |= {each["name"]: each["value"] for each in container["env"]}
        environment["JOB_COMPLETION_INDEX"] = str(pod.index)
        environment["JORA_COORDINATOR"] = self._address(pod, environment["JORA_COORDINATOR"])
        environment = {name: _placed(value, places) for name, value in environment.items()}
        command = [_placed(word, places) for word in [*container["command"], *container.get("args", [])]]
        here = {"python": sys.executable, "jora": str(Path(sys.executable).with_name("jora"))}
        pod.process = subprocess.Popen(
            [here[command[0]], *command[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.most = max(self.most, sum(bool(each.process) and each.code is None for each in self.pods))
        threading.Thread(target=_keep_log, args=(pod,), daemon=True).start()

    def _address(self, pod: Pod, told: str) -> str:
        """What the pods of the Service resolve the first one's name to."""
        assert self.service["spec"]["selector"].items() <= pod.labels.items()
        service, [port] = self.service["metadata"]["name"], self.service["spec"]["ports"]
        assert pod.spec["subdomain"] == service and told == f"{pod.job}-0.{service}:{port['port']}"
        if pod.job not in self._ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._ports[pod.job] = int(probe.getsockname()[1])
        return f"127.0.0.1:{self._ports[pod.job]}"


def _keep_log(pod: Pod) -> None:
    assert pod.process and pod.process.stdout
    for line in pod.process.stdout:
        pod.lines.append(f"{now()} ".encode() + line)
    pod.closed.set()


def _placed(text: str, places: Mapping[str, str]) -> str:
    for there, here in places.items():
        text = text.replace(there, here)
    return text


def _condition(kind: str, reason: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": reason, "message": "as the Job's spec says"}


class _Handler(BaseHTTPRequestHandler):
    """The API: ``/apis/batch/v1`` and ``/api/v1``, of one namespace."""

    it: Cluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("get")

    def do_POST(self) -> None:
        self._answer("create")

    def do_DELETE(self) -> None:
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        found = re.fullmatch(
            rf"/apis?/(?:batch/)?v1/namespaces/{NAMESPACE}/(\w+)(?:/([\w.-]+))?(/log)?", url.path
        )
        if not found:
            return self._refuse(404, f"no such path {url.path}")
        kind, name, log = found.groups()
        verb = "list" if verb == "get" and not name else verb
        right = f"{kind}{log or ''} {verb}"
        if self.it.away:
            return self._refuse(503, "the server is currently unable to handle the request")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._refuse(401, "Unauthorized")
        if right not in self.it.rights - self.it.withheld:
            return self._refuse(403, f'{kind} is forbidden: User "x" cannot {verb} resource "{kind}"')
        if self.it.full and right == "jobs create":
            return self._refuse(403, 'jobs.batch "x" is forbidden: exceeded quota: jobs, limited: 1')
        if log:
            return self._log(name, query)
        with self.it.lock:
            getattr(self, f"_{verb}")(kind, name, query, body)

    def _create(self, kind: str, name: str, query: Mapping[str, str], body: bytes) -> None:
        from kubernetes.client import ApiClient

        manifest, client = json.loads(body), ApiClient()
        try:
            read = client.deserialize(SimpleNamespace(data=body.decode()), MODELS[kind])
        except ValueError as error:
            return self._refuse(422, f"Job.batch is invalid: {error}")
        if client.sanitize_for_serialization(read) != manifest:
            return self._refuse(400, "strict decoding error: unknown field")
        name = manifest["metadata"]["name"]
        if not re.fullmatch("[a-z0-9]([-a-z0-9]{0,58}[a-z0-9])?", name):
            return self._refuse(422, f'Job.batch "{name}" is invalid: metadata.name')
        if name in (self.it.jobs if kind == "jobs" else self.it.settings):
            return self._refuse(409, f'{kind} "{name}" already exists')
        self.it.written.append((self.path, json.loads(body)))
        return self._send(201, self.it.create(kind, manifest))

    def _list(self, kind: str, name: str, query: Mapping[str, str], body: bytes) -> None:
        key, _, value = query["labelSelector"].partition("=")
        if kind == "pods":
            items = [pod.told() for pod in self.it.pods if pod.labels.get(key) == value]
        else:
            items = [job for job in self.it.jobs.values() if job["metadata"]["labels"].get(key) == value]
        return self._send(200, {"items": items})

    def _get(self, kind: str, name: str, query: Mapping[str, str], body: bytes) -> None:
        if name not in self.it.jobs:
            return self._refuse(404, f'jobs.batch "{name}" not found')
        return self._send(200, self.it.jobs[name])

    def _delete(self, kind: str, name: str, query: Mapping[str, str], body: bytes) -> None:
        assert query["propagationPolicy"] == "Foreground"
        if name not in self.it.jobs:
            return self._refuse(404, f'jobs.batch "{name}" not found')
        self.it.delete(name)
        return self._send(200, {"kind": "Status", "status": "Success"})

    def _log(self, name: str, query: Mapping[str, str]) -> None:
        pod = next((pod for pod in self.it.pods if pod.name == name), None)
        if pod is None or pod.process is None:
            return self._refuse(404, f'pods "{name}" not found')
        assert query["follow"] == query["timestamps"] == "True"  # as Go reads them too
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            for data in self._lines(pod):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            if not self.it.away:
                self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _lines(self, pod: Pod) -> Iterator[bytes]:
        sent = 0
        while not self.it.away:
            closed = pod.closed.is_set()
            lines = pod.lines[sent:]
            sent += len(lines)
            if lines:
                yield b"".join(lines)
            if closed:
                return
            time.sleep(0.1)

    def _refuse(self, status: int, message: str) -> None:
        return self._send(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})

    def _send(self, status: int, value: Mapping[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)
