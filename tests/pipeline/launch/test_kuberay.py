"""The RayJob: its form, and its script. test_kuberay_schema.py has KubeRay's own schema."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.core.errors import ConfigError
from rlaif.pipeline.launch.kuberay import write_kuberay
from tests.support.launching import (
    LISTS,
    plain_job,
    put_program,
    run_script,
    with_programs,
    words_of,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
LABEL = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    """An object with these keys and no others; those of `required` must be there."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def listed(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


STRING = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": STRING}
COUNT = {"type": "integer", "minimum": 1}
SECRET = closed("secretKeyRef", secretKeyRef=closed("name key", name=LABEL, key={"type": "string"}))
VARIABLE = closed("name", name={"type": "string"}, value={"type": "string"}, valueFrom=SECRET)
MOUNT = closed("name mountPath", name=LABEL, mountPath={"type": "string", "pattern": "^/"})
CONTAINER = closed(
    "name image resources",
    name=LABEL,
    image={"type": "string"},
    env=listed(VARIABLE),
    resources=closed("requests limits", requests=TEXTS, limits=TEXTS),
    volumeMounts=listed(MOUNT),
)
VOLUME = closed(
    "name",
    name=LABEL,
    persistentVolumeClaim=closed("claimName", claimName=LABEL),
    configMap=closed("name", name=LABEL),
    emptyDir=closed("medium", medium={"const": "Memory"}),
)
POD = closed(
    "containers volumes",
    containers=listed(CONTAINER) | {"maxItems": 1},
    volumes=listed(VOLUME),
    securityContext=closed("fsGroup", fsGroup=COUNT),
    nodeSelector=TEXTS,
    tolerations=listed(
        closed("key operator effect", key=STRING, operator={"const": "Exists"}, effect=STRING)
    ),
)
HEAD = closed("rayStartParams template", rayStartParams=TEXTS, template=closed("spec", spec=POD))
RAY_JOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name=LABEL | {"maxLength": 47}),
    spec=closed(
        "entrypoint rayClusterSpec",
        entrypoint={"const": "bash /job/run.sh"},
        entrypointNumGpus=COUNT,
        shutdownAfterJobFinishes={"const": True},
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=closed(
            "headGroupSpec rayVersion", headGroupSpec=HEAD, rayVersion={"type": "string"}
        ),
    ),
)
"""The keys that the job uses, as KubeRay and Kubernetes document them."""


def read(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ConfigMap and the RayJob of a job."""
    given = {"storage": "disk"} | changes
    script, ray_job = yaml.safe_load_all(write_kuberay(plain_job(**given)))
    return script, ray_job


@pytest.mark.parametrize(
    "changes", [{}, {"gpus": 0, "secrets": ()}, {"resources": {"gpu/type": "l4"}, "gpu": "L4"}]
)
def test_a_job_has_the_form_of_a_ray_job(changes: dict[str, Any]) -> None:
    jsonschema.validate(read(**changes)[1], RAY_JOB)


def test_the_head_alone_has_the_gpus_and_the_command() -> None:
    script, ray_job = read()
    spec = ray_job["spec"]
    assert "workerGroupSpecs" not in spec["rayClusterSpec"]
    [container] = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    limits = {"cpu": "16", "memory": "48Gi", "nvidia.com/gpu": "2"}
    assert container["resources"]["limits"] == limits
    # Ray would hide them from the entrypoint otherwise.
    assert spec["entrypointNumGpus"] == 2
    assert spec["activeDeadlineSeconds"] == 5400
    assert script["metadata"]["name"] == ray_job["metadata"]["name"]
    assert "entrypointNumGpus" not in read(gpus=0)[1]["spec"]


def test_what_is_mounted_is_a_volume() -> None:
    pod = read()[1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/shared"]]["persistentVolumeClaim"] == {"claimName": "disk"}
    assert volumes[mounts["/job"]]["configMap"] == {"name": "rlaif-small"}


def test_keys_are_named_and_come_from_one_secret() -> None:
    pod = read(secrets=("A_KEY", "B"))[1]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    env = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
    for name in ("A_KEY", "B"):
        reference = {"secretKeyRef": {"name": "rlaif-keys", "key": name}}
        assert env[name] == {"name": name, "valueFrom": reference}
    places = {env[name]["value"].startswith("/shared/") for name in ("RLAIF_CACHE", "HF_HOME")}
    assert places == {True}


def test_a_type_of_gpu_needs_a_label() -> None:
    with pytest.raises(ConfigError, match="nodes by their labels"):
        read(gpu="L4")
    pod = read(gpu="L4", resources={"key": "true"})[1]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert pod["template"]["spec"]["nodeSelector"] == {"key": "true"}


@settings(max_examples=30)
@given(st.lists(TEXT, min_size=1, max_size=3))
def test_every_word_of_the_command_arrives(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("programs")
    put_program(folder, "rlaif", LISTS)
    command = ("rlaif", "run", *(f"--set={word}" for word in words), "--", words[0])
    text = read(command=command)[0]["data"]["run.sh"]
    assert text.startswith("cd /shared\n")
    text = text.replace("cd /shared\n", "", 1)
    done = run_script(text, env=with_programs(folder, SAID=str(folder / "said")))
    assert done.returncode == 0, done.stderr
    assert words_of(folder / "said")[1:] == list(command[1:])
