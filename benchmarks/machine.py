"""Where and with what a run was made."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from threadpoolctl import threadpool_info

PACKAGES = ("blocksparse_ops", "pytensor", "numba", "numpy", "scipy", "torch", "jax")


def processor():
    """The processor's name and its caches, as Linux tells them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "caches": {
            f"L{read(cache / 'level')} {read(cache / 'type')}": read(cache / "size")
            for cache in caches
        },
    }


def read(path):
    return path.read_text().strip()


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe():
    blas = [
        {key: pool.get(key) for key in ("internal_api", "version", "architecture", "num_threads")}
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
    return {
        "machine": {**processor(), "system": platform.platform()},
        "versions": versions(),
        "blas": blas,
        "load": os.getloadavg(),
    }
