"""The files in deploy/ are valid by their schemas, and agree with this service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError
from manifests import OVERLAY_NAMES, OVERLAYS, adapter_rules, compose, kubernetes
from programs import program
from serving import ROOT

from florence.bento.image import MODELS, UID
from florence.server.http.paths import HEALTH
from florence.settings import Settings

VERSIONS = ("1.30", "1.37")  # the first with preStop's `sleep`, and the validator's latest
KINDS = {
    "base": {"Deployment", "Service", "PersistentVolumeClaim", "PodDisruptionBudget"},
    "autoscaled": {"HorizontalPodAutoscaler"},
}
EVERY_OVERLAY = pytest.mark.parametrize("overlay", OVERLAY_NAMES)


def check_compose(document: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Validate a Compose file by the Compose specification's schema."""
    file = folder / "compose.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


def florence() -> dict[str, Any]:
    """The Compose file's service."""
    return dict(compose()["services"]["florence"])


def pod(overlay: str) -> dict[str, Any]:
    """The overlay's pod."""
    return dict(kubernetes(overlay)["Deployment"]["spec"]["template"]["spec"])


def container(overlay: str) -> dict[str, Any]:
    """The overlay's container."""
    (found,) = pod(overlay)["containers"]
    return dict(found)


def pod_variables(overlay: str) -> dict[str, str]:
    """The container's environment variables."""
    return {variable["name"]: variable["value"] for variable in container(overlay)["env"]}


def comparable(value: Any) -> Any:
    """The value with lists of named items sorted by name, since a merge may change their order."""
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items()}
    if isinstance(value, list):
        parts = [comparable(part) for part in value]
        named = all(isinstance(part, dict) and "name" in part for part in parts)
        return sorted(parts, key=lambda part: str(part["name"])) if named else parts
    return value


@pytest.mark.parametrize("gpu", [False, True])
def test_the_compose_files_are_valid(tmp_path: Path, gpu: bool) -> None:
    """The Compose files are valid by the specification's schema, and a misspelt key is not."""
    document = compose(gpu=gpu)
    checked = check_compose(document, tmp_path)
    assert checked.returncode == 0, checked.stdout
    document["services"]["florence"]["helthcheck"] = document["services"]["florence"].pop("healthcheck")
    assert check_compose(document, tmp_path).returncode != 0


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@EVERY_OVERLAY
def test_each_kubernetes_object_is_valid(overlay: str, version: str) -> None:
    """Each object is valid by the schema of that version, and an unknown key is not."""
    for document in kubernetes(overlay).values():
        kubernetes_validate.validate(document, version, strict=True)
        document["spec"]["misspelt"] = True
        with pytest.raises(ValidationError):
            kubernetes_validate.validate(document, version, strict=True)


@EVERY_OVERLAY
def test_an_overlay_has_all_that_a_service_needs(overlay: str) -> None:
    """Each overlay has one object of each kind; only an autoscaled overlay has the autoscaler."""
    expected = KINDS["base"] | (KINDS["autoscaled"] if "autoscaled" in overlay else set())
    assert set(kubernetes(overlay)) == expected


@pytest.mark.system
@EVERY_OVERLAY
def test_kubectl_renders_the_same_objects(overlay: str) -> None:
    """kubectl renders the objects that the other tests read."""
    kubectl = program("kubectl", "kubernetes-client", "KUBECTL")
    rendered = subprocess.run(
        [kubectl, "kustomize", str(OVERLAYS / overlay)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert rendered.returncode == 0, rendered.stderr
    objects = {document["kind"]: document for document in yaml.safe_load_all(rendered.stdout)}
    assert comparable(objects) == comparable(kubernetes(overlay))


@pytest.mark.parametrize(
    "variables", [florence()["environment"], *(pod_variables(overlay) for overlay in OVERLAY_NAMES)]
)
def test_the_variables_are_settings(variables: dict[str, str]) -> None:
    """Each variable is a known setting with a valid value."""
    fields = {name.removeprefix("FLORENCE_").lower(): value for name, value in variables.items()}
    assert set(fields) <= set(Settings.model_fields)
    Settings.model_validate(fields)


def test_a_gpu_is_there_only_where_it_is_asked_for() -> None:
    """GPU overlays reserve one GPU for each pod; the CPU overlay reserves none and sets the device."""
    for overlay in OVERLAY_NAMES:
        limits = container(overlay)["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == (1 if "gpu" in overlay else None)
        assert pod_variables(overlay).get("FLORENCE_DEVICE") == (None if "gpu" in overlay else "cpu")
    assert "deploy" not in florence()
    (device,) = compose(gpu=True)["services"]["florence"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_compose_gives_time_to_drain() -> None:
    """Compose's grace period covers HTTP's requests and then gRPC's, each as long as a request may take."""
    needed_s = 2 * float(florence()["environment"]["FLORENCE_TIMEOUT_S"])
    assert int(florence()["stop_grace_period"].removesuffix("s")) >= needed_s + 10


@EVERY_OVERLAY
def test_a_pod_gives_time_to_drain(overlay: str) -> None:
    """A pod's grace period covers preStop, then HTTP's requests and gRPC's."""
    waits_s = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = waits_s + 2 * float(pod_variables(overlay)["FLORENCE_TIMEOUT_S"])
    assert pod(overlay)["terminationGracePeriodSeconds"] >= needed_s + 10


@EVERY_OVERLAY
def test_the_probes_ask_what_the_service_answers(overlay: str) -> None:
    """The probes use the service's liveness and readiness paths, which the access log leaves out, on the HTTP
    port."""
    names = ("startupProbe", "readinessProbe", "livenessProbe")
    probes = {name: container(overlay)[name]["httpGet"] for name in names}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    assert {probe["path"] for probe in probes.values()} <= set(HEALTH)
    assert {probe["port"] for probe in probes.values()} == {"http"}


@EVERY_OVERLAY
def test_the_ports_are_the_services(overlay: str) -> None:
    """HTTP listens at the port of the arguments and gRPC at its default, and the Service maps both."""
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    assert container(overlay)["args"] == ["serve", "--port", str(ports["http"])] == florence()["command"]
    assert ports["grpc"] == Settings.model_fields["grpc_port"].default
    assert florence()["ports"] == [f"{port}:{port}" for port in ports.values()]
    service = kubernetes(overlay)["Service"]["spec"]["ports"]
    assert {port["name"]: (port["port"], port["targetPort"]) for port in service} == {
        name: (number, name) for name, number in ports.items()
    }


@EVERY_OVERLAY
def test_nothing_is_written_but_the_cache_and_tmp(overlay: str) -> None:
    """The root is read-only, the user is the image's, and the volumes are at the image's paths."""
    assert container(overlay)["securityContext"]["readOnlyRootFilesystem"] is True
    context = pod(overlay)["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, UID, UID)
    assert {mount["mountPath"] for mount in container(overlay)["volumeMounts"]} == {MODELS, "/tmp"}
    assert florence()["read_only"] is True
    assert florence()["tmpfs"] == ["/tmp"]
    assert florence()["volumes"] == [f"models:{MODELS}"]


@EVERY_OVERLAY
def test_all_objects_mean_the_same_pods(overlay: str) -> None:
    """Selectors, names and the volume claim agree."""
    objects = kubernetes(overlay)
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod(overlay)["volumes"]]
    assert objects["PersistentVolumeClaim"]["metadata"]["name"] in claims


def test_the_autoscaler_reads_a_metric_that_is_there() -> None:
    """The autoscaler scales the Deployment by an engine metric that the adapter's rule exposes."""
    objects = kubernetes("gpu-autoscaled")
    scaler = objects["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == objects["Deployment"]["metadata"]["name"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    (rule,) = adapter_rules()
    assert rule["seriesQuery"].startswith(name + "{")
