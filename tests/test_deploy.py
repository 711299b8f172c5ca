"""The README's Compose file and Kubernetes objects: valid by their schemas, and right about this service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import ValidationError
from manifests import compose, kubernetes

from florence.bento.image import MODELS, UID
from florence.server.service import PROBES
from florence.settings import Settings

VERSIONS = ("1.30", "1.37")  # the first with the `sleep` of preStop, and the latest that the validator has
KINDS = {
    "Deployment",
    "Service",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "HorizontalPodAutoscaler",
}


def check_compose(document: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """What the validator says by the Compose specification's schema, which comes with it."""
    file = folder / "compose.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def florence() -> dict[str, Any]:
    """The Compose file's service."""
    return dict(compose()["services"]["florence"])


def pod() -> dict[str, Any]:
    return dict(kubernetes()["Deployment"]["spec"]["template"]["spec"])


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return dict(found)


def pod_variables() -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container()["env"]}


def test_the_compose_file_is_valid(tmp_path: Path) -> None:
    """By the specification's schema; a misspelt key is not."""
    checked = check_compose(compose(), tmp_path)
    assert checked.returncode == 0, checked.stdout
    document = compose()
    document["services"]["florence"]["helthcheck"] = document["services"]["florence"].pop("healthcheck")
    assert check_compose(document, tmp_path).returncode != 0


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kubernetes_object_is_valid(kind: str, version: str) -> None:
    """By the schema of that version, where unknown keys are errors; a misspelt key is one."""
    document = kubernetes()[kind]
    kubernetes_validate.validate(document, version, strict=True)
    document["spec"]["misspelt"] = True
    with pytest.raises(ValidationError):
        kubernetes_validate.validate(document, version, strict=True)


def test_there_is_one_object_of_each_kind() -> None:
    """None is left unchecked."""
    assert set(kubernetes()) == KINDS


@pytest.mark.parametrize("variables", [florence()["environment"], pod_variables()])
def test_the_variables_are_settings(variables: dict[str, str]) -> None:
    """Each is known and takes its value."""
    fields = {name.removeprefix("FLORENCE_").lower(): value for name, value in variables.items()}
    assert set(fields) <= set(Settings.model_fields)
    Settings.model_validate(fields)


def test_the_grace_is_long_enough_to_drain() -> None:
    """HTTP's requests, then gRPC's, each as long as a request may take; in a pod after preStop."""
    needed_s = 2 * float(florence()["environment"]["FLORENCE_TIMEOUT_S"])
    assert int(florence()["stop_grace_period"].removesuffix("s")) >= needed_s + 10
    waits_s = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed_s = waits_s + 2 * float(pod_variables()["FLORENCE_TIMEOUT_S"])
    assert pod()["terminationGracePeriodSeconds"] >= needed_s + 10


def test_the_probes_ask_what_the_service_answers() -> None:
    """Alive and ready, at paths that are kept out of the access log, on the port that it serves."""
    probes = {
        name: container()[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    assert {probe["path"] for probe in probes.values()} <= set(PROBES)
    assert {probe["port"] for probe in probes.values()} == {"http"}


def test_the_ports_are_the_services() -> None:
    """HTTP where the arguments put it, gRPC at its setting's default; the Service leads to both."""
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert container()["args"] == ["serve", "--port", str(ports["http"])] == florence()["command"]
    assert ports["grpc"] == Settings.model_fields["grpc_port"].default
    assert florence()["ports"] == [f"{port}:{port}" for port in ports.values()]
    service = kubernetes()["Service"]["spec"]["ports"]
    assert {port["name"]: (port["port"], port["targetPort"]) for port in service} == {
        name: (number, name) for name, number in ports.items()
    }


def test_nothing_is_written_but_the_cache_and_tmp() -> None:
    """The root is read-only, the user the image's, the volumes where the image has them."""
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    context = pod()["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, UID, UID)
    assert {mount["mountPath"] for mount in container()["volumeMounts"]} == {MODELS, "/tmp"}
    assert florence()["read_only"] is True
    assert florence()["tmpfs"] == ["/tmp"]
    assert florence()["volumes"] == [f"models:{MODELS}"]


def test_all_objects_mean_the_same_pods() -> None:
    """Selectors, names and the claim fit each other."""
    objects = kubernetes()
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == objects["Deployment"]["metadata"]["name"]
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod()["volumes"]]
    assert objects["PersistentVolumeClaim"]["metadata"]["name"] in claims
