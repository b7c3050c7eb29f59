"""What SkyPilot's loader reads in a task: `skypilot_load.py FILE` with keys in the environment."""

from __future__ import annotations

import json
import sys

import sky
import yaml

# As `sky jobs launch --secret NAME` hands them in.
keys = [(name, "value") for name in sys.argv[2:]]
with open(sys.argv[1], encoding="utf-8") as file:
    task = sky.Task.from_yaml_config(yaml.safe_load(file), secrets_overrides=keys or None)
resources = list(task.resources)
print(
    json.dumps(
        {
            "name": task.name,
            "nodes": task.num_nodes,
            "run": task.run,
            "envs": task.envs,
            "secrets": sorted(task.secrets),
            "gpus": sorted(
                [name, count]
                for one in resources
                for name, count in (one.accelerators or {}).items()
            ),
            "images": sorted({text for one in resources for text in (one.image_id or {}).values()}),
            "cpus": sorted({one.cpus for one in resources}),
            "memory": sorted({one.memory for one in resources}),
            "spot": sorted({one.use_spot for one in resources}),
            "storage": {path: one.mode.value for path, one in task.storage_mounts.items()},
            "cached": {
                path: one.mount_cached_config.transfers for path, one in task.storage_mounts.items()
            },
        }
    )
)
