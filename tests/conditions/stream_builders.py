"""Packages that offer condition streams, as an installer would lay them out in a folder of the path."""

from __future__ import annotations

import shutil
from pathlib import Path

TOY = Path(__file__).resolve().parents[2] / "examples" / "toy_stream"


def install(folder: Path, name: str, offers: dict[str, str], sources: dict[str, str]) -> Path:
    """Modules and the metadata of a package, with entry points; returns the folder."""
    metadata = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = "".join(f"{key} = {value}\n" for key, value in offers.items())
    (metadata / "entry_points.txt").write_text(f"[omniges.streams]\n{lines}")
    for module, source in sources.items():
        (folder / f"{module}.py").write_text(source)
    return folder


def install_toy(folder: Path) -> Path:
    """The example of `examples/toy_stream`, by what its pyproject.toml says."""
    import tomllib

    project = tomllib.loads((TOY / "pyproject.toml").read_text())
    offers = project["project"]["entry-points"]["omniges.streams"]
    install(folder, project["project"]["name"], offers, {})
    for module in project["tool"]["setuptools"]["py-modules"]:
        shutil.copy(TOY / f"{module}.py", folder)
    return folder
