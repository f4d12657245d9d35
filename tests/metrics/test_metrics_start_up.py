"""Metrics of arrays need neither torch nor librosa until one is asked for."""

import subprocess
import sys


def test_importing_them_loads_nothing_heavy():
    names = "clips frechet gesture profiles speech"
    script = "import sys\n" + "".join(f"import omniges.metrics.{name}\n" for name in names.split())
    run = subprocess.run(
        [sys.executable, "-c", f"{script}print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in run.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "librosa", "numba", "scipy", "safetensors", "sklearn"}
