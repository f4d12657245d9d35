"""Packages of other people, as an installer leaves them: metadata with entry points in a folder of sys.path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, groups: Mapping[str, Mapping[str, str]], name: str = "omniges-toy") -> Path:
    """Write the metadata of a distribution that announces "module:attribute" by group and name; returns the folder."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    sections = [
        "\n".join([f"[{group}]", *(f"{point} = {value}" for point, value in points.items())])
        for group, points in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(sections) + "\n")
    return folder
