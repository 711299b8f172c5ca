"""Dashboards, alerts, the ServiceMonitor and KServe files are valid by their schemas and fit this service."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import requests
import yaml
from manifests import DEPLOY, kubernetes
from programs import program
from prometheus_client.parser import text_string_to_metric_families
from serving import serving
from v2 import INFER, picture
from v2 import request as infer_request

from florence.bento.image import UID
from florence.server.observability.gpu_metrics import READINGS
from florence.settings import Settings

ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = DEPLOY / "grafana" / "florence.json"
KUBERNETES = DEPLOY / "kubernetes"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
KEY = "k" * 32
OBJECTS = {
    "service-monitor": KUBERNETES / "monitoring" / "service-monitor.yaml",
    "serving-runtime": KUBERNETES / "kserve" / "serving-runtime.yaml",
    "inference-service": KUBERNETES / "kserve" / "inference-service.yaml",
    "ray-cluster": KUBERNETES / "ray" / "ray-cluster.yaml",
}
_METRIC = re.compile(r"\b(?:florence|nv|bentoml)_[a-z0-9_]+")


def read(path: Path) -> Any:
    """The content of a YAML or JSON file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML


def alert_expressions() -> list[str]:
    """The expressions of all alerts."""
    return [rule["expr"] for group in read(ALERTS)["groups"] for rule in group["rules"]]


def panel_expressions() -> list[str]:
    """The queries of all panels."""
    return [target["expr"] for panel in read(DASHBOARD)["panels"] for target in panel["targets"]]


def metrics_in(expressions: list[str]) -> set[str]:
    """The names of metrics in these expressions."""
    return {name for expression in expressions for name in _METRIC.findall(expression)}


@pytest.mark.slow
def test_every_metric_that_they_name_is_in_a_scrape() -> None:
    """Each metric in an alert or a panel is in the scrape of a service that has answered over each
    protocol with an API key, or is a metric of GPUs."""
    settings = {"FLORENCE_MODEL": "demo", "FLORENCE_DTYPE": "float32", "FLORENCE_API_KEYS": f"alice:{KEY}"}
    headers = {"Authorization": f"Bearer {KEY}"}
    with serving("service:service", **settings) as server:
        server.wait_ready()
        answered = [
            requests.post(server.url + INFER, json=infer_request(), headers=headers, timeout=60),
            requests.post(server.url + "/caption", files={"image": picture()}, headers=headers, timeout=60),
        ]
        assert [reply.status_code for reply in answered] == [200, 200]
        text = requests.get(server.url + "/metrics", timeout=60).text
    scraped = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines()} - {"#"}
    assert len(list(text_string_to_metric_families(text))) > 20  # all of it can be read
    named = metrics_in(alert_expressions()) | metrics_in(panel_expressions())
    assert len(named) > 20
    assert named - scraped - {reading.name for reading in READINGS} == set()
    shares = [line for line in text.splitlines() if line.startswith("florence_key_requests_total{")]
    assert 'florence_key_requests_total{key="alice",outcome="stop"} 2.0' in shares


@pytest.mark.system
def test_promtool_takes_the_rules_and_the_panels(tmp_path: Path) -> None:
    """Prometheus' own parser accepts the alerts and each query of the dashboard."""
    promtool = program("promtool", "prometheus", "PROMTOOL_PROGRAM")
    queries = [each.replace("$__rate_interval", "5m") for each in panel_expressions()]
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries)]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for file in (ALERTS, panels):
        checked = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr + checked.stdout
    panels.write_text(panels.read_text().replace("sum by", "sum of"))
    assert subprocess.run([promtool, "check", "rules", panels], capture_output=True).returncode != 0


def test_each_alert_says_what_it_means() -> None:
    """Each alert has a unique name, a summary and a severity."""
    rules = [rule for group in read(ALERTS)["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in rules)


def test_the_dashboard_can_be_imported() -> None:
    """Panels have distinct ids, titles and positions, and the data source is chosen on import."""
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    for name in ("id", "title"):
        assert len({panel[name] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    (variable,) = dashboard["templating"]["list"]
    sources = {target["datasource"]["uid"] for panel in panels for target in panel["targets"]}
    assert sources == {"${" + variable["name"] + "}"}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_are_valid_by_their_projects_schemas(name: str) -> None:
    """Each object is valid by a schema trimmed from its project's own; a misspelt key is refused at each
    level."""
    schema, document = read(SCHEMAS / f"{name}.json"), read(OBJECTS[name])
    assert "Apache-2.0" in schema["$comment"]
    validator = jsonschema.Draft7Validator(schema)
    validator.check_schema(schema)
    assert not list(validator.iter_errors(document))
    for path in ([], ["spec"], *([["spec", "predictor"]] if name == "inference-service" else [])):
        wrong = copy.deepcopy(document)
        place = wrong
        for step in path:
            place = place[step]
        place["misspelt"] = True
        assert list(validator.iter_errors(wrong)), path


def test_the_monitor_finds_the_service() -> None:
    """The monitor selects the service's labels, its port's name and the metrics' path."""
    spec = read(OBJECTS["service-monitor"])["spec"]
    service = kubernetes("gpu")["Service"]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"


def test_kserve_s_pods_are_valid_and_run_this_service() -> None:
    """The container is valid in a Pod; its settings exist, its port is served, and the model has the
    runtime's format and the service's model name."""
    spec = read(OBJECTS["serving-runtime"])["spec"]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "florence"},
        "spec": {"containers": spec["containers"], "volumes": spec["volumes"]},
    }
    kubernetes_validate.validate(pod, "1.30", strict=True)
    (container,) = spec["containers"]
    variables = {each["name"].removeprefix("FLORENCE_").lower(): each["value"] for each in container["env"]}
    Settings.model_validate(variables)
    assert container["args"][-1] == str(container["ports"][0]["containerPort"])
    assert container["args"][-1] == spec["annotations"]["prometheus.kserve.io/port"]
    assert container["securityContext"]["runAsUser"] == UID
    predictor = read(OBJECTS["inference-service"])["spec"]["predictor"]
    (supported,) = spec["supportedModelFormats"]
    assert predictor["model"]["modelFormat"]["name"] == supported["name"]
    assert predictor["model"]["runtime"] == read(OBJECTS["serving-runtime"])["metadata"]["name"]
    assert predictor["timeout"] == int(variables["timeout_s"])
    assert f"/v2/models/{read(OBJECTS['inference-service'])['metadata']['name']}/infer" == INFER


def test_ray_s_pods_are_valid_and_know_their_settings() -> None:
    """Each pod is valid; driver and actor have the same settings and files, and no actor runs on the head."""
    spec = read(OBJECTS["ray-cluster"])["spec"]
    head, (worker,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    containers = []
    for group in (head, worker):
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "a"},
            "spec": group["template"]["spec"],
        }
        kubernetes_validate.validate(pod, "1.30", strict=True)
        containers += pod["spec"]["containers"]
    assert containers[0]["env"] == containers[1]["env"]
    assert containers[0]["volumeMounts"] == containers[1]["volumeMounts"]
    assert containers[0]["image"] == containers[1]["image"]
    names = {each["name"]: each["value"] for each in containers[0]["env"]}
    own = {name.removeprefix("FLORENCE_").lower(): names[name] for name in names if "FLORENCE" in name}
    Settings.model_validate(own)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    assert containers[1]["resources"]["limits"]["nvidia.com/gpu"] == 1
