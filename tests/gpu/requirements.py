"""Prints what `make test-gpu` installs: the service's dependencies with another build of ONNX Runtime."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNTIME = "onnxruntime-webgpu==1.27.0"
"""The same Python module as onnxruntime-gpu, so the two never share an environment."""
TESTS = ["httpx", "hypothesis", "onnx", "pytest", "pytest-asyncio"]

project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
needs = [need for need in project["dependencies"] if not need.startswith("onnxruntime")]
print("\n".join([RUNTIME, *needs, *TESTS]))
