"""The fields of Kubernetes, KubeRay and Kueue that cluster/kuberay uses; one that is not here is an error.

Written from the published references (Kubernetes 1.32 API, KubeRay's CRDs of 1.5 and newer), with the rules between
fields that these objects could break. Not all that KubeRay's operator or Kubernetes' admission refuses is refused here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
Labels = dict[
    Annotated[str, StringConstraints(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")], LabelValue
]
Port = Annotated[int, Field(ge=1, le=65_535)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Strict):
    name: Name
    namespace: Name | None = None
    labels: Labels = {}
    annotations: dict[str, str] = {}


class PodMetadata(Strict):
    labels: Labels


class Resources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]

    @model_validator(mode="after")
    def _gpus_cannot_be_overcommitted(self) -> Resources:
        assert self.requests.keys() == self.limits.keys()
        assert self.requests.get("nvidia.com/gpu") == self.limits.get("nvidia.com/gpu")
        return self


class Seccomp(Strict):
    type: Literal["RuntimeDefault", "Localhost"]


class PodSecurity(Strict):
    run_as_non_root: Literal[True]
    run_as_user: int = Field(ge=1)
    run_as_group: int = Field(ge=1)
    fs_group: int | None = None
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    seccomp_profile: Seccomp


class Capabilities(Strict):
    drop: list[Literal["ALL"]] = Field(min_length=1)


class ContainerSecurity(Strict):
    allow_privilege_escalation: Literal[False]
    capabilities: Capabilities


class Env(Strict):
    name: str
    value: str


class ContainerPort(Strict):
    name: Annotated[Name, StringConstraints(max_length=15)]
    container_port: Port


class Mount(Strict):
    name: Name
    mount_path: str
    read_only: bool = False


class HttpGet(Strict):
    path: Annotated[str, StringConstraints(pattern="^/")]
    port: Port


class Probe(Strict):
    http_get: HttpGet
    initial_delay_seconds: int = Field(ge=0)
    period_seconds: int = Field(ge=1)
    timeout_seconds: int = Field(ge=1)
    failure_threshold: int = Field(ge=1)


class Exec(Strict):
    command: list[str] = Field(min_length=1)


class Hook(Strict):
    exec: Exec


class Lifecycle(Strict):
    pre_stop: Hook


class Container(Strict):
    name: Name
    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"]
    env: list[Env] = []
    ports: list[ContainerPort] = []
    resources: Resources
    volume_mounts: list[Mount] = []
    security_context: ContainerSecurity
    lifecycle: Lifecycle | None = None
    readiness_probe: Probe | None = None
    liveness_probe: Probe | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> Container:
        for names in ([each.name for each in self.env], [each.name for each in self.ports]):
            assert len(names) == len(set(names)), names
        return self


class Claim(Strict):
    claim_name: Name


class EmptyDir(Strict):
    size_limit: Quantity


class ConfigMapVolume(Strict):
    name: Name


class SecretVolume(Strict):
    secret_name: Name


class Volume(Strict):
    name: Name
    secret: SecretVolume | None = None
    persistent_volume_claim: Claim | None = None
    empty_dir: EmptyDir | None = None
    config_map: ConfigMapVolume | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Volume:
        kinds = (self.persistent_volume_claim, self.empty_dir, self.config_map, self.secret)
        assert sum(each is not None for each in kinds) == 1
        return self


class Toleration(Strict):
    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    restart_policy: Literal["Never", "OnFailure", "Always"] | None = None
    automount_service_account_token: bool | None = None
    security_context: PodSecurity
    termination_grace_period_seconds: int | None = Field(None, ge=0)
    node_selector: Labels = {}
    tolerations: list[Toleration] = []
    volumes: list[Volume] = []
    containers: list[Container] = Field(min_length=1)

    @model_validator(mode="after")
    def _mounts_have_volumes(self) -> PodSpec:
        mounted = {mount.name for container in self.containers for mount in container.volume_mounts}
        assert mounted == {volume.name for volume in self.volumes}
        return self


class PodTemplate(Strict):
    metadata: PodMetadata
    spec: PodSpec


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class AutoscalerOptions(Strict):
    idle_timeout_seconds: int = Field(ge=0)
    resources: Resources
    security_context: ContainerSecurity


class HeadGroup(Strict):
    ray_start_params: dict[str, str]
    template: PodTemplate


class WorkerGroup(Strict):
    group_name: Name
    replicas: int = Field(ge=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=0)
    ray_start_params: dict[str, str]
    template: PodTemplate

    @model_validator(mode="after")
    def _in_order(self) -> WorkerGroup:
        assert self.min_replicas <= self.replicas <= self.max_replicas
        return self


class RayClusterSpec(Strict):
    ray_version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    auth_options: AuthOptions
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions
    head_group_spec: HeadGroup
    worker_group_specs: list[WorkerGroup] = Field(min_length=1)

    @model_validator(mode="after")
    def _operator_takes_it(self) -> RayClusterSpec:
        names = [group.group_name for group in self.worker_group_specs]
        assert len(names) == len(set(names)), names
        major, minor, _ = map(int, self.ray_version.split("."))
        assert self.auth_options.mode == "disabled" or (major, minor) >= (2, 52), "token authentication is Ray 2.52's"
        return self


class RayJobSpec(Strict):
    entrypoint: Annotated[str, StringConstraints(min_length=1)]
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoff_limit: int = Field(ge=0)
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int = Field(ge=0)
    suspend: bool = False
    ray_cluster_spec: RayClusterSpec
    submitter_pod_template: PodTemplate

    @model_validator(mode="after")
    def _operator_takes_it(self) -> RayJobSpec:
        assert self.shutdown_after_job_finishes or not self.ttl_seconds_after_finished
        assert self.submission_mode == "K8sJobMode", "only this mode has a submitter's pod"
        assert self.submitter_pod_template.spec.restart_policy in ("Never", "OnFailure")
        return self


class UpgradeStrategy(Strict):
    type: Literal["NewCluster", "None", "NewClusterWithIncrementalUpgrade"]


class RayServiceSpec(Strict):
    upgrade_strategy: UpgradeStrategy
    ray_cluster_deletion_delay_seconds: int = Field(ge=0)
    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: RayClusterSpec


class ClaimResources(Strict):
    requests: dict[Literal["storage"], Quantity]


class ClaimSpec(Strict):
    access_modes: list[Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"]]
    storage_class_name: str | None = None
    resources: ClaimResources


class Selector(Strict):
    match_labels: Labels = {}


class Peer(Strict):
    namespace_selector: Selector | None = None
    pod_selector: Selector | None = None


class PolicyPort(Strict):
    protocol: Literal["TCP"]
    port: Port


class IngressRule(Strict):
    from_: list[Peer] = Field(alias="from", min_length=1)
    ports: list[PolicyPort] = []


class NetworkPolicySpec(Strict):
    pod_selector: Selector
    policy_types: list[Literal["Ingress", "Egress"]]
    ingress: list[IngressRule]


class BudgetSpec(Strict):
    # By the scale of their owner, which a RayCluster has not: `maxUnavailable` would let no pod go, ever.
    min_available: int = Field(ge=1)
    unhealthy_pod_eviction_policy: Literal["IfHealthyBudget", "AlwaysAllow"]
    selector: Selector


class ServicePort(Strict):
    number: Port


class BackendService(Strict):
    name: Name
    port: ServicePort


class IngressBackend(Strict):
    service: BackendService


class IngressPath(Strict):
    path: str
    path_type: Literal["Prefix", "Exact"]
    backend: IngressBackend


class IngressHttp(Strict):
    paths: list[IngressPath]


class HostRule(Strict):
    host: str
    http: IngressHttp


class IngressTls(Strict):
    hosts: list[str]
    secret_name: Name


class IngressSpec(Strict):
    ingress_class_name: Name
    tls: list[IngressTls] = Field(min_length=1)
    rules: list[HostRule]


class Quota(Strict):
    name: str
    nominal_quota: Quantity


class Flavor(Strict):
    name: Name
    resources: list[Quota]


class ResourceGroup(Strict):
    covered_resources: list[str]
    flavors: list[Flavor]

    @model_validator(mode="after")
    def _all_are_covered(self) -> ResourceGroup:
        assert all([quota.name for quota in flavor.resources] == self.covered_resources for flavor in self.flavors)
        return self


class ClusterQueueSpec(Strict):
    namespace_selector: Selector
    resource_groups: list[ResourceGroup]


class LocalQueueSpec(Strict):
    cluster_queue: Name


SPECS: dict[tuple[str, str], type[BaseModel] | None] = {
    ("ray.io/v1", "RayCluster"): RayClusterSpec,
    ("ray.io/v1", "RayJob"): RayJobSpec,
    ("ray.io/v1", "RayService"): RayServiceSpec,
    ("v1", "PersistentVolumeClaim"): ClaimSpec,
    ("networking.k8s.io/v1", "NetworkPolicy"): NetworkPolicySpec,
    ("networking.k8s.io/v1", "Ingress"): IngressSpec,
    ("policy/v1", "PodDisruptionBudget"): BudgetSpec,
    ("kueue.x-k8s.io/v1beta1", "ResourceFlavor"): None,
    ("kueue.x-k8s.io/v1beta1", "ClusterQueue"): ClusterQueueSpec,
    ("kueue.x-k8s.io/v1beta1", "LocalQueue"): LocalQueueSpec,
    ("v1", "Namespace"): None,
    ("v1", "ConfigMap"): None,
}


def validate(manifest: dict[str, Any]) -> BaseModel | None:
    """The manifest's spec, if it has one and all of the manifest is right; a pydantic `ValidationError` if not."""
    Metadata.model_validate(manifest["metadata"])
    schema = SPECS[manifest["apiVersion"], manifest["kind"]]
    rest = manifest.keys() - {"apiVersion", "kind", "metadata"}
    assert rest == ({"spec"} if schema else {"data"} if manifest["kind"] == "ConfigMap" else set())
    return schema.model_validate(manifest["spec"]) if schema else None
