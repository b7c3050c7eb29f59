"""The tables of docs/scale.md are what its script prints, which goes by the estimator."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from rlaif.pipeline.memory import GIB

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "scale_arithmetic", ROOT / "benchmarks" / "scale_arithmetic.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_on_the_page(script: ModuleType) -> None:
    for name, lines in script.make_tables().items():
        assert "\n".join(lines) in PAGE, name


def test_the_parameters_are_those_of_the_shapes(script: ModuleType) -> None:
    # Embedding and head, 80 layers of attention (8 of 64 heads have keys), MLP and two norms, and
    # the last norm.
    outside = 2 * 128256 * 8192 + 8192
    layer = 2 * 8192 * 8192 + 2 * 1024 * 8192 + 3 * 28672 * 8192 + 2 * 8192
    size = script.measure_size()
    assert (size.parameters, size.largest_layer, size.outside) == (
        outside + 80 * layer, layer, outside,
    )  # fmt: skip
    assert f"`P` = {size.parameters / 1e9:.2f} billion" in PAGE
    rows = dict(row[:2] for row in script.list_memory(size))
    # 18 bytes a parameter; divided 16, and what is gathered: outside and two layers in bf16, and
    # the largest gradient in bf16 and fp32.
    assert rows["one GPU"] == f"{18 * size.parameters / GIB:,.1f}"
    gathered = 2 * (outside + 2 * layer) + 6 * outside
    assert rows["64 GPUs"] == f"{(16 * size.parameters / 64 + gathered) / GIB:,.1f}"
