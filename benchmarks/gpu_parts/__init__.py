"""The parts of the GPU check; see `benchmarks/gpu.py`."""
