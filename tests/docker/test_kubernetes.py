"""The manifests of docker/k8s: their shapes, and whether they agree with each other and with the server."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from caravan.cli.serve_options import serve_options
from caravan.scheduler.config import EngineConfig
from caravan.server.generation.admission import Admission
from caravan.server.observe.metrics import Metrics
from caravan.server.settings import Settings, WrongSettings, load_settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker" / "k8s"
VERSION = "1.37"  # of Kubernetes
PAGE = (ROOT / "docs" / "kubernetes.md").read_text("utf-8")

Manifest = dict[str, Any]


def strict(properties: Manifest, *required: str) -> Manifest:
    """Return the schema of an object that has no other keys."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


NAME: Manifest = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"}
LABELS: Manifest = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
PORT: Manifest = {"type": "integer", "minimum": 1, "maximum": 65535}
INFERENCE_POOL = strict(  # inference.networking.k8s.io/v1; unknown keys, such as those of drafts, are wrong
    {
        "apiVersion": {"const": "inference.networking.k8s.io/v1"},
        "kind": {"const": "InferencePool"},
        "metadata": strict({"name": NAME, "namespace": NAME, "labels": LABELS, "annotations": LABELS}, "name"),
        "spec": strict(
            {
                "selector": strict({"matchLabels": LABELS | {"minProperties": 1, "maxProperties": 64}}, "matchLabels"),
                "targetPorts": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 8,
                    "uniqueItems": True,
                    "items": strict({"number": PORT}, "number"),
                },
                "appProtocol": {"enum": ["http", "kubernetes.io/h2c"]},
                "endpointPickerRef": strict(
                    {
                        "group": {"type": "string", "maxLength": 253},
                        "kind": {"const": "Service"},
                        "name": NAME,
                        "port": strict({"number": PORT}, "number"),
                        "failureMode": {"enum": ["FailOpen", "FailClose"]},
                    },
                    "name",
                    "port",
                ),
            },
            "selector",
            "targetPorts",
            "endpointPickerRef",
        ),
    },
    "apiVersion",
    "kind",
    "metadata",
    "spec",
)
KUSTOMIZATION = strict(
    {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "namespace": NAME,
        "resources": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}},
        "images": {
            "type": "array",
            "items": strict({name: {"type": "string"} for name in ("name", "newName", "newTag", "digest")}, "name"),
        },
    },
    "apiVersion",
    "kind",
    "resources",
)


def load(path: Path) -> Manifest:
    (manifest,) = yaml.safe_load_all(path.read_text("utf-8"))
    found: Manifest = manifest
    return found


FILES = sorted(FOLDER.rglob("*.yaml"))
MANIFESTS = {load(path)["kind"]: load(path) for path in FILES if path.name != "kustomization.yaml"}
DEPLOYMENT = MANIFESTS["Deployment"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
SPECS = {kind: manifest.get("spec", {}) for kind, manifest in MANIFESTS.items()}


def check(manifest: Manifest) -> None:
    """Raise if a manifest has an unknown key or a wrong value."""
    match manifest["kind"]:
        case "InferencePool":
            jsonschema.validate(manifest, INFERENCE_POOL)
        case "Kustomization":
            jsonschema.validate(manifest, KUSTOMIZATION)
        case _:
            kubernetes_validate.validate(manifest, VERSION, strict=True)


WRONG = (jsonschema.ValidationError, kubernetes_validate.ValidationError)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_manifest_has_the_shape_of_its_kind(path: Path) -> None:
    check(load(path))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key that Kubernetes names; those of labels and resources are names of our own."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield (*path, key)
            is_map = isinstance(child, dict) and all(isinstance(one, str) for one in child.values())
            if key not in ("labels", "matchLabels", "requests", "limits") and not (key == "selector" and is_map):
                yield from places(child, (*path, key))
    if isinstance(value, list):
        for index, child in enumerate(value):
            yield from places(child, (*path, index))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_misspelled_key_is_noticed_wherever_it_is(path: Path) -> None:
    num_keys = 0
    for *parents, key in places(load(path)):
        if (parents, key) in (([], "kind"), ([], "apiVersion")):
            continue
        broken = copy.deepcopy(load(path))
        place = broken
        for parent in parents:
            place = place[parent]
        place[f"{key}x"] = place.pop(key)
        with pytest.raises(WRONG):
            check(broken)
        num_keys += 1
    assert num_keys > 1


def test_spellings_of_drafts_of_the_inference_pool_are_refused() -> None:
    pool = MANIFESTS["InferencePool"]
    for change in ({"extensionRef": {"name": "caravan-picker"}}, {"targetPortNumber": 8000}):
        with pytest.raises(WRONG):
            check(pool | {"spec": pool["spec"] | change})


def test_every_file_is_a_resource_and_every_resource_is_a_file() -> None:
    listed = {FOLDER / "kustomization.yaml", FOLDER / "inference-pool" / "kustomization.yaml"}
    for file in [*listed]:
        for resource in load(file)["resources"]:
            target = (file.parent / resource).resolve()
            assert target.exists(), resource
            listed.add(target / "kustomization.yaml" if target.is_dir() else target)
    assert listed == {path for path in FOLDER.rglob("*") if path.is_file()}


def test_every_selector_finds_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    (spread,) = POD["topologySpreadConstraints"]
    selectors = [
        SPECS["Deployment"]["selector"]["matchLabels"],
        SPECS["Service"]["selector"],
        SPECS["PodDisruptionBudget"]["selector"]["matchLabels"],
        SPECS["NetworkPolicy"]["podSelector"]["matchLabels"],
        SPECS["InferencePool"]["selector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    scaled = SPECS["HorizontalPodAutoscaler"]["scaleTargetRef"]
    assert scaled == {name: DEPLOYMENT[name] for name in ("apiVersion", "kind")} | {"name": "caravan"}
    assert DEPLOYMENT["metadata"]["name"] == "caravan"
    assert "replicas" not in DEPLOYMENT["spec"], "each apply would undo the autoscaler's choice"


def test_every_port_is_the_server_s() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == load_settings({}, {}).port
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    (rule,) = SPECS["NetworkPolicy"]["ingress"]
    named = [probe["port"] for probe in probes] + [one["targetPort"] for one in SPECS["Service"]["ports"]]
    assert {*named, *(one["port"] for one in rule["ports"])} == {port["name"]}
    assert SPECS["InferencePool"]["targetPorts"] == [{"number": port["containerPort"]}]
    assert [probe["path"] for probe in probes] == ["/readyz", "/livez", "/readyz"]


def settings_of_pod(tmp_path: Path) -> Settings:
    """Return the settings that the container's arguments result in."""
    command, _model, *options = CONTAINER["args"]
    assert command == "serve"
    assert {option.partition("=")[0] for option in options} <= {one.flag for one in serve_options()}
    flags = {name.removeprefix("--").replace("-", "_"): value for name, _, value in (o.partition("=") for o in options)}
    keys = tmp_path / "keys"
    keys.write_text("app: a-key-of-the-app\nprometheus: a-key-of-prometheus, scrape\n")
    return load_settings(flags | {"api_key_file": str(keys), "host": "0.0.0.0"}, {})


def test_the_server_accepts_the_options_and_needs_a_key(tmp_path: Path) -> None:
    settings = settings_of_pod(tmp_path)
    assert settings.load_keys() is not None
    assert settings.metrics_names == "vllm"
    memory = CONTAINER["resources"]
    assert memory["requests"]["memory"] == memory["limits"]["memory"]
    assert int(settings.kv_cache_memory or 0) < int(memory["limits"]["memory"].removesuffix("Gi")) * 2**30
    assert settings.num_threads == int(memory["requests"]["cpu"])


def test_a_pod_is_killed_only_after_the_drain(tmp_path: Path) -> None:
    seconds = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"] + settings_of_pod(tmp_path).drain_timeout
    assert POD["terminationGracePeriodSeconds"] >= seconds + 10
    (policy,) = SPECS["HorizontalPodAutoscaler"]["behavior"]["scaleDown"]["policies"]
    assert policy["periodSeconds"] > POD["terminationGracePeriodSeconds"]


def test_variables_of_services_would_be_read_as_options_so_the_pod_gets_none() -> None:
    with pytest.raises(WrongSettings, match="CARAVAN_SERVICE_HOST"):
        load_settings({}, {"CARAVAN_SERVICE_HOST": "10.0.0.1", "CARAVAN_PORT": "tcp://10.0.0.1:80"})
    assert POD["enableServiceLinks"] is False


def test_the_pod_has_no_privileges_and_no_token() -> None:
    assert POD["automountServiceAccountToken"] is False
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert f"--uid {POD['securityContext']['runAsUser']} " in dockerfile
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert MANIFESTS["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert SPECS["NetworkPolicy"]["egress"] == []


def test_the_volumes_are_mounted_where_the_server_reads_and_writes() -> None:
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in POD["volumes"]}
    assert {name for name, mount in mounts.items() if mount.get("readOnly")} == {"model", "keys"}
    assert CONTAINER["args"][1].startswith(f"{mounts['model']['mountPath']}/")
    (file,) = (arg.partition("=")[2] for arg in CONTAINER["args"] if arg.startswith("--api-key-file="))
    assert file.startswith(f"{mounts['keys']['mountPath']}/")
    assert f"XDG_CACHE_HOME={mounts['cache']['mountPath']} " in (ROOT / "docker" / "Dockerfile").read_text()
    (claim,) = (one["persistentVolumeClaim"] for one in POD["volumes"] if "persistentVolumeClaim" in one)
    assert claim["claimName"] == MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_autoscaler_reads_a_metric_that_the_server_has_and_the_adapter_s_rule_names() -> None:
    config = EngineConfig(num_blocks=64, max_model_len=512)
    metrics = Metrics("m", config)
    metrics.add_queue_gauge(Admission(config, metrics).num_queued_tokens)
    (metric,) = SPECS["HorizontalPodAutoscaler"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"# TYPE {name} gauge" in metrics.exposition().decode()
    rules = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]
    (adapter,) = (rule["rules"] for rule in rules if "rules" in rule)
    (rule,) = adapter
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}


def test_the_page_describes_every_file_and_claims_no_cluster() -> None:
    described = set(re.findall(r"^\| `([\w/-]+\.yaml)`", PAGE, re.MULTILINE))
    assert described == {str(path.relative_to(FOLDER)) for path in FILES}
    assert "No cluster was run" in PAGE
