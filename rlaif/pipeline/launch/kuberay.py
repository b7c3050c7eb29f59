"""A job as a RayJob of KubeRay, whose one node runs the command.

An experiment runs in one process and those that it starts, so the cluster is its head alone.
"""

from __future__ import annotations

import shlex
from typing import Any

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.documents import write_documents
from rlaif.pipeline.launch.job import SHARED, Job

RAY = "2.60.0"
"""The version in the image of tools/docker/Dockerfile, which must be that of the cluster."""
KEYS = "rlaif-keys"
"""The Secret that holds every key under the name of its environment variable."""
USER = 1000
"""The user of the image of tools/docker/Dockerfile."""
RETRIES = 5
"""How often a job goes on by itself after its node was lost."""
KEPT = 600
"""Seconds that the cluster of a finished job stays, for its logs."""


def write_kuberay(job: Job) -> str:
    """The text of the file: the command as a script in a ConfigMap, and the RayJob that runs it.

    The script stands by itself because an entrypoint goes through several shells, which would each
    take some of its quotes. Raises ConfigError for a type of GPU without a label of its nodes.
    """
    return write_documents([make_script(job), make_ray_job(job)])


def make_script(job: Job) -> dict[str, Any]:
    """The ConfigMap with the job's script."""
    lines = [f"cd {shlex.quote(SHARED)}", f"exec {shlex.join(job.command)}"]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job.name},
        "data": {"run.sh": "".join(f"{line}\n" for line in lines)},
    }


def make_ray_job(job: Job) -> dict[str, Any]:
    """The RayJob."""
    spec: dict[str, Any] = {
        "entrypoint": "bash /job/run.sh",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEPT,
        "activeDeadlineSeconds": job.seconds,
        "backoffLimit": RETRIES,
        "rayClusterSpec": {
            "rayVersion": RAY,
            "headGroupSpec": {
                "rayStartParams": {"dashboard-host": "0.0.0.0"},
                "template": {"spec": _make_pod(job)},
            },
        },
    }
    if job.gpus:
        # Ray hides the GPUs from what has not asked for them.
        spec["entrypointNumGpus"] = job.gpus
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.name},
        "spec": spec,
    }


def _make_pod(job: Job) -> dict[str, Any]:
    wanted = {"cpu": str(job.cpus), "memory": f"{job.memory}Gi"}
    limits = dict(wanted)
    if job.gpus:
        limits["nvidia.com/gpu"] = str(job.gpus)
    keys = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": KEYS, "key": name}}}
        for name in job.secrets
    ]
    folders = {"RLAIF_CACHE": f"{SHARED}/.cache/rlaif", "HF_HOME": f"{SHARED}/.cache/huggingface"}
    pod: dict[str, Any] = {
        "securityContext": {"fsGroup": USER},
        "containers": [
            {
                "name": "ray-head",
                "image": job.image,
                "env": [{"name": name, "value": place} for name, place in folders.items()] + keys,
                "resources": {"requests": wanted, "limits": limits},
                "volumeMounts": [
                    {"name": "shared", "mountPath": SHARED},
                    {"name": "job", "mountPath": "/job"},
                    {"name": "memory", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": job.storage}},
            {"name": "job", "configMap": {"name": job.name}},
            # Processes of a training exchange tensors there, and the usual 64 MiB are too few.
            {"name": "memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    if job.gpus:
        # Clouds keep other pods off nodes with GPUs by this taint.
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    if job.resources:
        pod["nodeSelector"] = dict(job.resources)
    if job.gpu is not None and not job.resources:
        raise ConfigError(
            f"--gpu {job.gpu}: Kubernetes chooses nodes by their labels; name one with --resource, "
            "such as --resource cloud.google.com/gke-accelerator=nvidia-l4"
        )
    return pod
