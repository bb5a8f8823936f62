"""The KubeRay manifests, as the overlays build them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from clara_dist.config import TrainConfig
from clara_dist.config.compress import CompressConfig
from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.config.workers import WorkerRange
from clara_dist.distributed.serve_app import SERVE_ENVIRONMENT
from clara_dist.distributed.submit import Submission
from clara_dist.planning import Calibration, Lengths, ModelShape, Workload, estimate, find_gpu
from kube_schemas import IngressSpec, RayClusterSpec, RayJobSpec, RayServiceSpec, validate
from kustomized import build, copy_tree, load_all

ROOT = Path(__file__).resolve().parents[3]
KUBERAY = ROOT / "cluster" / "kuberay"
OVERLAYS = ("small", "large")
JOBS = {"compress": CompressConfig, "train": TrainConfig, "evaluate": EvaluateConfig}

Objects = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> Objects:
    return built(request.param)


def built(overlay: str) -> Objects:
    made = build(KUBERAY / "overlays" / overlay)
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in made}
    assert len(by_name) == len(made)
    return by_name


def cluster_specs(objects: Objects) -> dict[str, RayClusterSpec]:
    """By the component that runs on it."""
    specs = {}
    for each in objects.values():
        spec = validate(each)
        if isinstance(spec, RayJobSpec):
            spec = spec.ray_cluster_spec
        elif isinstance(spec, RayServiceSpec):
            spec = spec.ray_cluster_config
        if isinstance(spec, RayClusterSpec):
            specs[each["metadata"]["labels"]["app.kubernetes.io/component"]] = spec
    return specs


def test_every_object_of_an_overlay_is_valid_and_in_the_namespace(objects: Objects) -> None:
    assert {kind for kind, _ in objects} == {
        *("Namespace", "ConfigMap", "PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget"),
        *("RayCluster", "RayJob", "RayService"),
    }
    for (kind, _), each in objects.items():
        validate(each)
        assert each["metadata"].get("namespace") == (None if kind == "Namespace" else "clara")
        assert each["metadata"]["labels"]["app.kubernetes.io/component"]


def test_the_queue_is_valid_and_of_the_namespace() -> None:
    flavor, cluster_queue, local_queue = load_all(KUBERAY / "kueue.yaml")
    for each in (flavor, cluster_queue, local_queue):
        validate(each)
    assert local_queue["metadata"]["namespace"] == "clara"
    assert local_queue["spec"]["clusterQueue"] == cluster_queue["metadata"]["name"]
    flavors = [each["name"] for group in cluster_queue["spec"]["resourceGroups"] for each in group["flavors"]]
    assert flavors == [flavor["metadata"]["name"]]


def test_the_ingress_has_tls_for_every_host_and_ends_at_the_service() -> None:
    (ingress,) = load_all(KUBERAY / "ingress.yaml")
    spec = validate(ingress)
    assert isinstance(spec, IngressSpec)
    assert {host for tls in spec.tls for host in tls.hosts} == {rule.host for rule in spec.rules}
    # KubeRay names the service after the RayService.
    (name,) = [name for kind, name in built("small") if kind == "RayService"]
    backends = [path.backend.service for rule in spec.rules for path in rule.http.paths]
    assert [(backend.name, backend.port.number) for backend in backends] == [(f"{name}-serve-svc", 8000)]


def test_what_kuberay_names_after_ours_has_names_of_its_own(objects: Objects) -> None:
    # Heads of RayCluster and RayService have services of these names; a job's is named after its random cluster.
    heads = [f"{name}-head-svc" for kind, name in objects if kind in ("RayCluster", "RayService")]
    assert len(set(heads)) == len(heads) == 2


def test_a_field_that_kuberay_does_not_have_is_refused() -> None:
    for path, value in (("authOption", {"mode": "token"}), ("rayVersion", "2.51.0"), ("workerGroupSpecs", [])):
        wrong = copy_tree(built("small")["RayCluster", "clara-cluster"])
        wrong["spec"][path] = value
        with pytest.raises(ValidationError):
            validate(wrong)


def test_every_cluster_wants_a_token_and_has_the_ray_that_is_tested(objects: Objects) -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "cluster" / "constraints-cpu.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    specs = cluster_specs(objects)
    assert set(specs) == {"cluster", "compress", "train", "evaluate", "serve"}
    for spec in specs.values():
        assert spec.auth_options.mode == "token"
        assert spec.ray_version == pinned[1]
        assert spec.head_group_spec.ray_start_params == {"num-cpus": "0"}
        assert [group.group_name for group in spec.worker_group_specs] == ["cpu", "gpu", "spot"]
        for template in (spec.head_group_spec.template, *(group.template for group in spec.worker_group_specs)):
            (container,) = template.spec.containers
            assert re.fullmatch(r"registry\.example/clara-dist:[\d.]+-(cpu|cuda)", container.image)
            assert {each.name: each.value for each in container.env}.items() >= SERVE_ENVIRONMENT.items()
            assert container.readiness_probe is not None
            assert container.liveness_probe is not None
            assert template.metadata.labels["app.kubernetes.io/part-of"] == "clara"


def test_a_head_that_is_taken_away_stops_its_jobs_first_and_has_the_time(objects: Objects) -> None:
    for spec in cluster_specs(objects).values():
        pod = spec.head_group_spec.template.spec
        (container,) = pod.containers
        (wait,) = [float(each.value) for each in container.env if each.name == "RAY_JOB_STOP_WAIT_TIME_S"]
        assert wait == Submission("compress").stop_wait_s
        assert pod.termination_grace_period_seconds is not None
        assert pod.termination_grace_period_seconds >= wait + 30
        assert container.lifecycle is not None
        python, script, option, address = container.lifecycle.pre_stop.exec.command
        assert (python, (ROOT / Path(script).relative_to("/app")).is_file()) == ("python", True)
        # Else KubeRay would take the jobs for complete.
        assert option == "--evicted"
        assert address == "http://127.0.0.1:8265"


@pytest.mark.parametrize(
    ("overlay", "shape", "gpu", "cpu", "seconds"),
    [
        # The slowest GPU that the planner knows, at half of what it aims at.
        ("large", ModelShape(4096, 7e9), "L40S", None, 70),
        # 3 cores that make 20 GFLOP/s together, in float32.
        ("small", ModelShape(768, 1e8), None, Calibration("cpu", 2e10, None, 0), 90),
    ],
)
def test_what_a_worker_has_ends_in_the_time_that_a_job_has_to_stop(
    overlay: str, shape: ModelShape, gpu: str | None, cpu: Calibration | None, seconds: float
) -> None:
    settings = built(overlay)["ConfigMap", "clara-config"]["data"]["compress.yaml"]
    rows, _ = CompressConfig.model_validate(yaml.safe_load(settings)).shard_bounds(2 * 16 * shape.hidden_size, 256)
    work = Workload(shape, rows, 16, Lengths.parse("256"))
    plan = estimate(work, gpu=gpu and find_gpu(gpu), calibration=cpu, utilization=gpu and 0.3)
    took = rows / plan.documents_per_s
    assert took == pytest.approx(seconds, rel=0.1)
    # One shard is being made, and another one waits for the same worker.
    assert 2 * took < Submission("compress").stop_wait_s / 1.5


def test_only_the_service_has_the_api_keys_and_they_come_from_a_secret(objects: Objects) -> None:
    for component, spec in cluster_specs(objects).items():
        for template in (spec.head_group_spec.template, *(group.template for group in spec.worker_group_specs)):
            secrets = [each.secret.secret_name for each in template.spec.volumes if each.secret is not None]
            assert secrets == (["clara-api-keys"] if component == "serve" else [])
            # Ray logs the environment of what it starts, and shows it on its dashboard.
            assert all("KEY" not in each.name and "TOKEN" not in each.name for each in template.spec.containers[0].env)
    served = yaml.safe_load(objects["RayService", "clara"]["spec"]["serveConfigV2"])
    assert served["applications"][0]["args"]["api_key_file"] == "/etc/clara-api-keys/keys"


def test_gpu_groups_ask_for_gpus_and_spot_machines_take_only_what_can_be_lost(objects: Objects) -> None:
    for component, spec in cluster_specs(objects).items():
        cpu, gpu, spot = spec.worker_group_specs
        for group, n_gpus in ((cpu, None), (gpu, "1"), (spot, "1")):
            assert group.template.spec.containers[0].resources.limits.get("nvidia.com/gpu") == n_gpus
        assert spot.template.spec.node_selector == {"clara-dist/capacity": "spot"}
        if component != "compress":
            assert spot.max_replicas == 0


def test_the_network_policy_leaves_only_the_api_open_to_clients(objects: Objects) -> None:
    policy = validate(objects["NetworkPolicy", "clara"])
    assert policy is not None
    inside, *outside = policy.ingress
    assert inside.from_[0].pod_selector == policy.pod_selector
    ports = {tuple(port.port for port in rule.ports) for rule in outside}
    assert ports == {(8265, 8000), (8080, 8000), (8000,)}
    operator = outside[0].from_[0].pod_selector
    assert operator is not None
    assert operator.match_labels == {"app.kubernetes.io/component": "kuberay-operator"}


def test_disruption_budgets_select_pods_that_there_are(objects: Objects) -> None:
    # KubeRay adds ray.io/node-type to every pod.
    pods = [
        {**template.metadata.labels, "ray.io/node-type": kind}
        for spec in cluster_specs(objects).values()
        for kind, template in (
            ("head", spec.head_group_spec.template),
            *(("worker", group.template) for group in spec.worker_group_specs),
        )
    ]
    selected = {}
    for (kind, name), each in objects.items():
        if kind == "PodDisruptionBudget":
            wanted = each["spec"]["selector"]["matchLabels"].items()
            selected[name] = sum(wanted <= pod.items() for pod in pods)
    assert selected == {"clara-heads": 5, "clara-serve": 3}


@pytest.mark.parametrize("job", JOBS)
def test_a_jobs_entrypoint_is_a_script_of_the_image_with_settings_that_are_mounted(objects: Objects, job: str) -> None:
    spec = objects["RayJob", f"clara-{job}"]["spec"]
    python, script, option, path, *rest = shlex.split(spec["entrypoint"])
    assert (python, option) == ("python", "--config")
    assert (ROOT / Path(script).relative_to("/app")).is_file()
    assert rest == (["--resume"] if job == "train" else [])
    # A retry makes a new cluster and runs the same command: it must go on with what is there.
    assert spec["backoffLimit"] >= 1
    assert Path(path).parent == Path("/etc/clara")
    settings = yaml.safe_load(objects["ConfigMap", "clara-config"]["data"][Path(path).name])
    JOBS[job].model_validate(settings)
    paths = [text for text in texts(settings) if text.startswith("/")]
    assert len(paths) >= 3
    assert all(path.startswith("/data/") for path in paths)


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


@pytest.mark.parametrize(
    ("overlay", "job", "group"),
    [("small", "compress", 0), ("small", "train", 0), ("large", "compress", 2), ("large", "train", 1)],
)
def test_a_jobs_cluster_grows_to_its_workers(overlay: str, job: str, group: int) -> None:
    objects = built(overlay)
    config = JOBS[job].model_validate(yaml.safe_load(objects["ConfigMap", "clara-config"]["data"][f"{job}.yaml"]))
    limit = cluster_specs(objects)[job].worker_group_specs[group].max_replicas
    assert limit == WorkerRange.model_validate(config.workers).most
    others = [each for i, each in enumerate(cluster_specs(objects)[job].worker_group_specs) if i != group]
    assert all(each.max_replicas == 0 for each in others)


def test_there_is_room_for_every_replica(objects: Objects) -> None:
    served = yaml.safe_load(objects["RayService", "clara"]["spec"]["serveConfigV2"])["applications"][0]["args"]
    config = ServeConfig.model_validate(served)
    cpu, gpu, _ = cluster_specs(objects)["serve"].worker_group_specs
    free = [
        float(group.template.spec.containers[0].resources.limits["cpu"])
        for group in (cpu, gpu)
        for _ in range(group.max_replicas)
    ]
    n_gpus = gpu.max_replicas
    for needed, n in (
        (config.retriever_cpus, config.retriever_shards * config.retriever_replicas),
        (config.engine_cpus, config.engine_replicas),
        (0.1, config.ingress_replicas),
    ):
        for _ in range(n):
            # GPU pods last, and engines on them where they need one.
            places = (
                range(len(free) - n_gpus, len(free)) if needed == config.engine_cpus and n_gpus else range(len(free))
            )
            place = next(i for i in places if free[i] >= needed)
            free[place] -= needed


def test_the_service_deploys_what_the_jobs_make(objects: Objects) -> None:
    served = ServeDeploySchema.model_validate(yaml.safe_load(objects["RayService", "clara"]["spec"]["serveConfigV2"]))
    (app,) = served.applications
    assert app.import_path == "clara_dist.distributed.serve_app:build_app"
    config = ServeConfig.model_validate(app.args)
    # Any host but loopback: the ingress does not start without an API key.
    assert not config.is_loopback
    # The proxy waits longer than the server, whose 504 says what happened.
    assert served.http_options.request_timeout_s > config.limits.request_timeout_s
    assert served.http_options.port == 8000
    data = objects["ConfigMap", "clara-config"]["data"]
    assert config.store == yaml.safe_load(data["compress.yaml"])["store"]
    assert config.model == yaml.safe_load(data["train.yaml"])["stages"][-1]["output"]
    assert config.model == yaml.safe_load(data["evaluate.yaml"])["model"]
