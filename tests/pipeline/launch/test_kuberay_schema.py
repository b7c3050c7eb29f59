"""KubeRay's own schema takes the RayJob, and knows every key of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from rlaif.pipeline.launch.kuberay import write_kuberay
from tests.support.launching import plain_job

SCHEMA = Path(__file__).parent / "data" / "kuberay_rayjob_v1.7.0.json.gz"
"""KubeRay's CustomResourceDefinition of RayJobs, version v1, without its descriptions; the file
says where it is from."""


def close(schema: Any) -> Any:
    """The schema as JSON Schema, in which keys that it does not name are errors: a cluster drops
    them without a word."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: close(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        found["properties"] = {key: close(value) for key, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            found.setdefault("additionalProperties", False)
    return found


@pytest.fixture(scope="module")
def schema() -> Any:
    own = json.loads(gzip.decompress(SCHEMA.read_bytes()))["schema"]
    # Its metadata is that of all Kubernetes objects, of which it says no more.
    return close(own) | {"properties": close(own)["properties"] | {"metadata": True}}


@pytest.mark.parametrize(
    "changes",
    [{}, {"gpus": 0, "secrets": ()}, {"resources": {"gpu/type": "l4"}, "gpu": "L4"}],
)
def test_the_schema_takes_the_job(schema: Any, changes: dict[str, Any]) -> None:
    given = {"storage": "disk"} | changes
    _, ray_job = yaml.safe_load_all(write_kuberay(plain_job(**given)))
    jsonschema.validate(ray_job, schema)


def test_the_schema_refuses_what_it_does_not_know(schema: Any) -> None:
    """Otherwise the test above would say nothing."""
    _, ray_job = yaml.safe_load_all(write_kuberay(plain_job(storage="disk")))
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]
    for place in (ray_job["spec"], head, head["template"]["spec"]["containers"][0]):
        place["unheardOf"] = 1
        with pytest.raises(jsonschema.ValidationError, match="unheardOf"):
            jsonschema.validate(ray_job, schema)
        del place["unheardOf"]
    ray_job["spec"]["backoffLimit"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(ray_job, schema)
