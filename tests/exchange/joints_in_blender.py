"""Runs inside Blender: imports a file and writes the positions of its joints as .npy, y up and in metres."""

from __future__ import annotations

import builtins
import sys

import bpy
import numpy as np

_open = builtins.open
# The importers of Blender 3.4, as Debian 12 has it: names that Python 3.11 and NumPy 1.24 lack.
builtins.open = lambda file, mode="r", *rest, **more: _open(file, mode.replace("U", ""), *rest, **more)
if not hasattr(np, "bool"):
    np.bool = np.bool_

path, out, *names = sys.argv[sys.argv.index("--") + 1 :]
bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.context.scene.render.fps = 30
if path.endswith(".bvh"):
    bpy.ops.import_anim.bvh(filepath=path, global_scale=0.01, update_scene_fps=True)
elif path.endswith(".glb"):
    bpy.ops.import_scene.gltf(filepath=path)
else:
    bpy.ops.import_scene.fbx(filepath=path)
assert bpy.context.scene.render.fps == 30
for found in [found for found in bpy.data.objects if found.type == "MESH"]:
    bpy.data.objects.remove(found)  # it would be deformed in each frame, which takes most of the time
(armature,) = (found for found in bpy.data.objects if found.type == "ARMATURE")
first, last = (int(end) for end in armature.animation_data.action.frame_range)
places = np.empty((last - first + 1, len(names), 3))
for frame in range(first, last + 1):
    bpy.context.scene.frame_set(frame)
    heads = (armature.matrix_world @ armature.pose.bones[name].head for name in names)
    places[frame - first] = [(head.x, head.z, -head.y) for head in heads]
np.save(out, places)
