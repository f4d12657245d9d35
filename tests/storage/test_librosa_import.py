"""librosa is imported by one process at a time."""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from omniges.errors import EnvironmentFault
from omniges.storage import librosa_import


def test_it_is_imported_under_a_lock_that_all_processes_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes that fill numba's cache at once leave one from which no process can import librosa any more."""
    real, locked = importlib.import_module, []
    package = real("librosa").__file__

    def watched(name: str, parent: str | None = None) -> ModuleType:
        with Path(package).open() as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked.append(name)
        return real(name, parent)

    librosa_import.load_librosa.cache_clear()
    monkeypatch.setattr(importlib, "import_module", watched)
    assert librosa_import.load_librosa().__name__ == "librosa"
    assert "librosa.onset" in locked


def test_without_it_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    librosa_import.load_librosa.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EnvironmentFault, match="librosa: expected this package"):
        librosa_import.load_librosa()


@pytest.mark.slow
def test_without_a_folder_for_its_cache_one_line_names_the_variable() -> None:
    script = "from omniges.storage.librosa_import import *\nfrom omniges.errors import EnvironmentFault\n"
    script += "try: load_librosa()\nexcept EnvironmentFault as fault: print(fault)"
    variables = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | variables, timeout=60
    )
    assert "set NUMBA_CACHE_DIR" in run.stdout, run.stderr
