"""Checks the chart, the plain manifests, the Dockerfile and the compose file; `render` writes the manifests anew.

`scripts/stages/deploy` runs it, with the programs in the variables HELM, KUBE_SCORE and TOOLS.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ceremony.settings import Settings, read_settings  # noqa: E402 - the checkout is no installed package of this script
from ceremony.version import VERSION  # noqa: E402

DEPLOY = ROOT / "deploy"
CHART, MANIFESTS = DEPLOY / "chart", DEPLOY / "manifests"
EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
# Rendered for those without Helm.
RENDERED = ("production", "per-role", "single")
HELM, KUBE_SCORE, TOOLS = (os.environ.get(name, "") for name in ("HELM", "KUBE_SCORE", "TOOLS"))
# Kinds of the Prometheus operator, whose schemas Kubernetes does not have.
FOREIGN = "monitoring.coreos.com/"
# Variables of a pod that are no settings: the chart's own one, and one that only OpenTelemetry's exporter reads.
FOREIGN_VARIABLES = frozenset({"POD_IP", "OTEL_EXPORTER_OTLP_HEADERS"})
# A worker on an embedded log is alone: kube-score would have more, replaced one by one.
WARNED = {"single": {"Deployment Replicas", "Deployment Strategy"}}
# Values that the schema refuses, each with a part of the refusal.
REFUSED: Sequence[tuple[str, str]] = (
    ("worker.replicas=0", "/worker/replicas"),
    ("worker.replicas=two", "/worker/replicas"),
    ("worker.resources.limits=null", "limits"),
    ("worker.resources.limits.memory=lots", "/worker/resources/limits/memory"),
    ("worker.disruption.maxUnavailable=0", "/worker/disruption/maxUnavailable"),
    ("image.tag=latest", "/image/tag"),
    ("image.digest=sha256:12", "/image/digest"),
    ("log.url=kafka://user:word@kafka:9092", "/log/url"),
    ("log.url=sqlite:///data/log.db", "/log/url"),
    ("log.partitions=0", "/log/partitions"),
    ("log.topicPrefix=a.b", "/log/topicPrefix"),
    ("nats.url=nats://user:word@nats:4222", "/nats/url"),
    ("nats.streamReplicas=6", "/nats/streamReplicas"),
    ("traces.endpoint=https://user:word@otel:4318", "/traces/endpoint"),
    ("traces.endpoint=otel:4318", "/traces/endpoint"),
    ("traces.headersSecret.name=only", "/traces/headersSecret"),
    ("traces.headers=word", "headers"),
    ("valkey.password=word", "password"),
    ("valkey.passwordSecret.name=only", "/valkey/passwordSecret"),
    ("neo4j.uri=neo4j://neo4j:word@neo4j:7687", "/neo4j/uri"),
    ("settings.VALKEY_PASSWORD=word", "invalid propertyName 'VALKEY_PASSWORD'"),
    ("settings.NEO4J_PASSWORD=word", "invalid propertyName 'NEO4J_PASSWORD'"),
    ("settings.OTEL_EXPORTER_OTLP_HEADERS=word", "invalid propertyName 'OTEL_EXPORTER_OTLP_HEADERS'"),
    ("settings.OTEL_EXPORTER_OTLP_TRACES_HEADERS=word", "invalid propertyName 'OTEL_EXPORTER_OTLP_TRACES_HEADERS'"),
    ("settings.OTEL_EXPORTER_OTLP_ENDPOINT=http://otel", "invalid propertyName 'OTEL_EXPORTER_OTLP_ENDPOINT'"),
    ("settings.lower=1", "invalid propertyName 'lower'"),
    ("readinessRequires={kafka2}", "/readinessRequires/0"),
    ("state.kind=disk", "/state/kind"),
    ("logLevel=LOUD", "/logLevel"),
    ("terminationGracePeriodSeconds=1", "/terminationGracePeriodSeconds"),
    ("podSecurity.runAsUser=0", "/podSecurity/runAsUser"),
    ("definitions.files.Bad-name=x", "invalid propertyName 'Bad-name'"),
    ("monitoring.serviceMonitor.interval=often", "/monitoring/serviceMonitor/interval"),
    ("topologySpread.zones=Never", "/topologySpread/zones"),
    ("replicaCount=3", "replicaCount"),
)
# Values that contradict each other, each with a part of the refusal.
CONTRADICTING: Sequence[tuple[Sequence[str], str]] = (
    (("worker.autoscaling.enabled=true", "worker.autoscaling.maxReplicas=13"), "would own nothing"),
    (("worker.autoscaling.enabled=true", "worker.autoscaling.minReplicas=7"), "above maxReplicas"),
    (("log.url=sqlite:///var/lib/ceremony/log.db",), "one process"),
    (("log.url=sqlite:///var/lib/ceremony/log.db", "worker.replicas=1", "onePerRole=true"), "one process"),
    (("neo4j.uri=bolt://neo4j:7687",), "passwordSecret is required"),
    (("traces.headersSecret.name=ceremony-traces", "traces.headersSecret.key=headers"), "traces.endpoint is required"),
    (("stopSeconds=40",), "below terminationGracePeriodSeconds"),
    (("definitions.configMap=other",), "one of definitions.files"),
)

Document = dict[str, Any]


class Wrong(Exception):
    """A check found something."""


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)


def must(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode != 0:
        raise Wrong((done.stdout + done.stderr).strip())
    return done.stdout


def template(example: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run(HELM, "template", "ceremony", CHART, "--namespace", "ceremony", "--values", example, *options)


def rendered(example: Path) -> list[Document]:
    return [one for one in yaml.safe_load_all(must(template(example))) if one]


def pods(documents: Sequence[Document]) -> Iterator[tuple[Document, Document]]:
    """Yield the pod of each workload, with its container."""
    for one in documents:
        if one["kind"] == "Deployment":
            pod = one["spec"]["template"]["spec"]
            yield pod, pod["containers"][0]


# ---- checks


def requirements() -> None:
    must(run(sys.executable, DEPLOY / "export.py", "--check"))


def dockerfile() -> None:
    must(run(f"{TOOLS}/hadolint", DEPLOY / "image/Dockerfile"))


def compose() -> None:
    """The model of compose refuses a wrong name; each image has a version, and each worker is confined."""
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    program = "import sys, compose_spec; compose_spec.PyCompose.from_json(sys.stdin.read())"
    must(run(f"{TOOLS}/python", "-c", program, input=json.dumps(content)))
    spoilt = json.dumps(content).replace('"restart"', '"restrat"')
    if run(f"{TOOLS}/python", "-c", program, input=spoilt).returncode == 0:
        raise Wrong("a wrong name is not noticed")
    for name, service in content["services"].items():
        tag = service["image"].rpartition(":")[2]
        if not tag[:1].isdigit():
            raise Wrong(f"{name}: the image {service['image']} has no version")
    workers = {name: one for name, one in content["services"].items() if one["image"] == f"ceremony-engine:{VERSION}"}
    if sorted(workers) != ["bridge", "engine", "projector", "ray-executor"]:
        raise Wrong(f"workers of version {VERSION} are {sorted(workers)}")
    if loose := [name for name, one in workers.items() if not one.get("read_only") or one.get("cap_drop") != ["ALL"]]:
        raise Wrong(f"not confined: {loose}")


def versions() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    if chart["appVersion"] != VERSION:
        raise Wrong(f"appVersion of the chart is {chart['appVersion']}, the release is {VERSION}")


def lint() -> None:
    for example in EXAMPLES:
        must(run(HELM, "lint", "--strict", "--quiet", CHART, "--values", example))


def schemas() -> None:
    """Kubernetes' own schemas, in which an unknown field is an error; one is planted to see that it is."""
    for example in EXAMPLES:
        must(validated(native(example)))
    documents = native(EXAMPLES[0])
    documents[0]["spec"]["unknown"] = True
    if validated(documents).returncode == 0:
        raise Wrong("an unknown field is not noticed")


def native(example: Path) -> list[Document]:
    """Return the documents of Kubernetes' own kinds."""
    return [one for one in rendered(example) if not one["apiVersion"].startswith(FOREIGN)]


def validated(documents: Sequence[Document]) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(documents, file)
        file.flush()
        return run(f"{TOOLS}/kubernetes-validate", "--strict", "--quiet", file.name)


def score() -> None:
    for example in EXAMPLES:
        said = must(run(KUBE_SCORE, "score", "--output-format", "json", "-", input=must(template(example))))
        for thing in json.loads(said):
            for check in thing["checks"]:
                allowed = check["check"]["name"] in WARNED.get(example.stem, ())
                if not check["skipped"] and check["grade"] < 10 and not allowed:  # noqa: PLR2004 - of ten
                    raise Wrong(
                        f"{example.stem}: {thing['object_name']}: {check['check']['name']}: {check['comments']}"
                    )


def refusals() -> None:
    """The schema refuses wrong values, and the chart those that contradict each other, with a word on the place."""
    minimal = CHART / "examples/minimal.yaml"
    for values, words in [*(((value,), words) for value, words in REFUSED), *CONTRADICTING]:
        options = [part for value in values for part in ("--set", value)]
        done = template(minimal, *options)
        if done.returncode == 0 or words not in done.stderr:
            raise Wrong(f"{', '.join(values)}: expected a refusal with {words!r}, got {done.stderr or 'none'}")


def confinement() -> None:
    """Each pod: no token, no root, nothing to write but its volumes, and no secret but by reference."""
    for example in EXAMPLES:
        for pod, container in pods(rendered(example)):
            context = container["securityContext"]
            held = {
                "no token": pod["automountServiceAccountToken"] is False,
                "no root": context["runAsNonRoot"] and context["runAsUser"] > 0,
                "read-only": context["readOnlyRootFilesystem"],
                "no capabilities": context["capabilities"] == {"drop": ["ALL"]},
                "no escalation": context["allowPrivilegeEscalation"] is False,
                "profile": pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
                "probes": {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(),
                "spread": len(pod["topologySpreadConstraints"]) == 2,  # noqa: PLR2004 - zones and nodes
            }
            if broken := [name for name, holds in held.items() if not holds]:
                raise Wrong(f"{example.stem}: {broken}")


def settings() -> None:
    """The program itself accepts the settings of each worker, on Kubernetes and in compose, and knows each variable."""
    known = {field.alias for field in Settings.model_fields.values()} | FOREIGN_VARIABLES
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    for name in ("engine", "bridge", "projector"):
        if unknown := set(services[name]["environment"]) - known:
            raise Wrong(f"compose.yaml: {name}: no such settings: {sorted(unknown)}")
        accepted(services[name]["environment"])
    for example in EXAMPLES:
        documents = rendered(example)
        data = {one["metadata"]["name"]: one.get("data", {}) for one in documents if one["kind"] == "ConfigMap"}
        for _, container in pods(documents):
            given = dict(data[container["envFrom"][0]["configMapRef"]["name"]])
            given |= {one["name"]: one.get("value", "nats://from-a-secret:4222") for one in container["env"]}
            if unknown := set(given) - known:
                raise Wrong(f"{example.stem}: no such settings: {sorted(unknown)}")
            accepted(given)


def accepted(given: Mapping[str, str]) -> None:
    """Raises Wrong where the program would refuse these variables; a mounted password is a file of this test."""
    with tempfile.NamedTemporaryFile("w") as password:
        password.write("word")
        password.flush()
        variables = {name: password.name if name.endswith("_FILE") else value for name, value in given.items()}
        variables["CEREMONY_ADVERTISED_ADDR"] = "10.0.0.1:50057"
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            read_settings({})
        except Exception as error:
            raise Wrong(f"{error} ({variables})") from error
        finally:
            os.environ.clear()
            os.environ.update(before)


def monitoring() -> None:
    """The chart's copy of the alerts is that of deploy/monitoring, and its rule holds all of them."""
    original, copy = DEPLOY / "monitoring/alerts.yaml", CHART / "alerts.yaml"
    if original.read_text() != copy.read_text():
        raise Wrong("the chart's alerts.yaml is not that of deploy/monitoring: scripts/stages/deploy render")
    rules = [one for one in rendered(CHART / "examples/production.yaml") if one["kind"] == "PrometheusRule"]
    if [one["spec"] for one in rules] != [yaml.safe_load(original.read_text())]:
        raise Wrong("the PrometheusRule is not alerts.yaml")


def manifests() -> None:
    for name in RENDERED:
        path = MANIFESTS / f"{name}.yaml"
        if not path.is_file() or path.read_text() != manifest(name):
            raise Wrong(f"deploy/manifests/{path.name} is not as the chart renders it: scripts/stages/deploy render")


def manifest(name: str) -> str:
    """Return the manifests of an example, without the label of the Helm that rendered them."""
    text = must(template(CHART / f"examples/{name}.yaml"))
    head = f"# Rendered from deploy/chart with examples/{name}.yaml by `scripts/stages/deploy render`.\n"
    return head + text.replace("app.kubernetes.io/managed-by: Helm", "app.kubernetes.io/managed-by: kubectl")


CHECKS: Sequence[Callable[[], None]] = (
    requirements, dockerfile, compose, versions,
    lint, schemas, score, refusals, confinement, settings, monitoring, manifests,
)  # fmt: skip


def main() -> int:
    if sys.argv[1:] == ["render"]:
        (CHART / "alerts.yaml").write_text((DEPLOY / "monitoring/alerts.yaml").read_text())
        for name in RENDERED:
            (MANIFESTS / f"{name}.yaml").write_text(manifest(name))
        return 0
    for check in CHECKS:
        print(f"== deploy: {check.__name__}", flush=True)
        try:
            check()
        except Wrong as wrong:
            print(f"deploy: {check.__name__}: {wrong}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
