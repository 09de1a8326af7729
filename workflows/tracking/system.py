"""Use of the machine: CPU, memory, disk, network, GPUs."""

from __future__ import annotations

import contextlib
import importlib
import logging
from typing import Any

import psutil


class SystemMetrics:
    """Samples of this machine; MLflow shows keys under `system/` on a page of their own."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # the first call has nothing to compare with and returns 0
        self._nvml: Any = None
        self._gpus: list[Any] = []
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._gpus = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self._nvml.nvmlDeviceGetCount())]
        except Exception:  # no package, no driver, no device: then there are no values of a GPU
            logging.getLogger(__name__).debug("no GPU to sample", exc_info=True)

    def sample(self) -> dict[str, float]:
        """Percentages (of the CPUs: since the last sample), memory in use in GB (10**9 bytes), power in watts."""
        memory = psutil.virtual_memory()
        values = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_gb": (memory.total - memory.available) / 1e9,
            "system/memory_percent": memory.percent,
        }
        for index, gpu in enumerate(self._gpus):
            with contextlib.suppress(self._nvml.NVMLError):  # a slice of a GPU has no percentage
                values[f"system/gpu_{index}_memory_gb"] = self._nvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e9
                values[f"system/gpu_{index}_watts"] = self._nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
                values[f"system/gpu_{index}_percent"] = float(self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        return values
