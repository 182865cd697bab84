"""The Kubernetes manifest of docs/cluster.md, held against what the operator and Kubernetes accept.

No package carries KubeRay's own schema. The fields here were written down from its API reference
(ray.io/v1, https://ray-project.github.io/kuberay/reference/api/); pods are checked by the schemas
of Kubernetes itself.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dynamonet.command_line import load
from pretrain.settings import PretrainSettings
from tests.conftest import ROOT


class Known(BaseModel):
    """Kubernetes drops fields that it does not know, or refuses them; here they are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Template(Known):
    metadata: dict[str, Any] | None = None
    spec: dict[str, Any]


class HeadGroup(Known):
    template: Template
    rayStartParams: dict[str, str]
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    headService: dict[str, Any] | None = None
    enableIngress: bool | None = None
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class WorkerGroup(Known):
    groupName: str
    template: Template
    rayStartParams: dict[str, str]
    replicas: int = Field(default=0, ge=0)
    minReplicas: int = Field(default=0, ge=0)
    maxReplicas: int = Field(default=2**31 - 1, ge=0)
    numOfHosts: int = Field(default=1, ge=1)
    idleTimeoutSeconds: int | None = None
    suspend: bool | None = None
    scaleStrategy: dict[str, Any] | None = None
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class Cluster(Known):
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup] = []
    rayVersion: str | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: dict[str, Any] | None = None
    authOptions: dict[str, Any] | None = None
    gcsFaultToleranceOptions: dict[str, Any] | None = None
    headServiceAnnotations: dict[str, str] | None = None
    suspend: bool | None = None
    managedBy: str | None = None


class Job(Known):
    entrypoint: str
    rayClusterSpec: Cluster
    runtimeEnvYAML: str | None = None
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: int = Field(default=0, ge=0)
    activeDeadlineSeconds: int | None = Field(default=None, gt=0)
    backoffLimit: int = Field(default=0, ge=0)
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = (
        None
    )
    submitterPodTemplate: Template | None = None
    submitterConfig: dict[str, Any] | None = None
    clusterSelector: dict[str, str] | None = None
    deletionStrategy: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    jobId: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    suspend: bool | None = None
    managedBy: str | None = None


class Manifest(Known):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: dict[str, str]
    spec: Job


def manifest() -> dict[str, Any]:
    text = (ROOT / "docs/cluster.md").read_text("utf-8")
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    return yaml.safe_load(found[1])


def check_pod(template: Template) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": template.spec}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_operator_and_kubernetes_know_every_field_of_the_manifest() -> None:
    job = Manifest.model_validate(manifest()).spec
    for group in (job.rayClusterSpec.headGroupSpec, *job.rayClusterSpec.workerGroupSpecs):
        check_pod(group.template)
    assert job.runtimeEnvYAML is not None
    settings = yaml.safe_load(job.runtimeEnvYAML)
    assert all(isinstance(value, str) for value in settings["env_vars"].values())


def test_its_command_asks_for_the_gpus_that_its_pods_have() -> None:
    job = Manifest.model_validate(manifest()).spec
    python, script, *words = job.entrypoint.split()
    assert python == "python" and (ROOT / script).is_file()
    settings = load(PretrainSettings, words, prog="")
    (group,) = job.rayClusterSpec.workerGroupSpecs
    (container,) = group.template.spec["containers"]
    assert (
        settings.num_workers == group.replicas * container["resources"]["limits"]["nvidia.com/gpu"]
    )
    assert settings.loader.batch_size % settings.num_workers == 0


def test_a_field_that_nobody_knows_is_found() -> None:
    wrong = manifest()
    wrong["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 8
    with pytest.raises(ValidationError, match="replica"):
        Manifest.model_validate(wrong)
    right = Manifest.model_validate(manifest()).spec.rayClusterSpec.headGroupSpec.template
    right.spec["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        check_pod(right)
