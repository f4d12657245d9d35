"""Script run by Blender: ``blender --background --factory-startup --python in_blender.py -- IN.glb OUT.fbx RATE``."""

from __future__ import annotations

import sys


def main(source: str, target: str, rate_hz: int) -> None:
    """Convert a GLB file to FBX. Each frame of the animation is baked (stored as a keyframe).

    Args:
        source: Path of the GLB file.
        target: Path of the FBX file.
        rate_hz: Frames per second.
    """
    import bpy  # noqa: PLC0415 - exists only in Blender
    import numpy as np  # noqa: PLC0415 - Blender contains it

    if not hasattr(np, "bool"):
        np.bool = np.bool_  # type: ignore[misc]  # the glTF importer of Blender 3.4 in Debian 12 uses NumPy's old name
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = rate_hz
    bpy.ops.import_scene.gltf(filepath=source)
    (armature,) = (found for found in bpy.data.objects if found.type == "ARMATURE")
    first, last = armature.animation_data.action.frame_range
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = int(first), int(last)
    bpy.ops.export_scene.fbx(
        filepath=target,
        add_leaf_bones=False,
        bake_anim=True,
        bake_anim_use_all_actions=False,
        bake_anim_use_nla_strips=False,
        bake_anim_simplify_factor=0.0,
        object_types={"ARMATURE", "MESH"},
    )


if __name__ == "__main__":
    _source, _target, _rate_hz = sys.argv[sys.argv.index("--") + 1 :]
    main(_source, _target, int(_rate_hz))
