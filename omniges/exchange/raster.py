"""Software rasterizer of triangle meshes. It needs no display, no GPU and no system libraries.

Numba, a dependency of librosa, compiles these functions. They release Python's global interpreter lock (GIL), so that
several threads can draw frames at the same time. Each pixel is divided into `SAMPLES`² = 4 subpixels, 2 in each
direction. Lengths are in metres. Shape letters: V vertices, F triangles, B bones, H rows and W columns of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Triangles = npt.NDArray[np.int32]

SAMPLES: Final = 2
"""Number of subpixels of a pixel in each direction. More subpixels make edges smoother (anti-aliasing)."""

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def _compiled(function: Kernel) -> Kernel:
    return cast("Kernel", numba.njit(cache=True, nogil=True, fastmath=True)(function))


@_compiled
def skin(positions: F32, normals: F32, bones: U8, weights: F32, matrices: F32, placed: F32, turned: F32) -> None:
    """Move each vertex with its one or two bones (linear blend skinning).

    Args:
        positions: (V, 3) in the rest pose.
        normals: (V, 3) in the rest pose.
        bones: (V, 2) indices of the bones of each vertex.
        weights: (V,) weight of the second bone, from 0 to 1.
        matrices: (B, 3, 4) rotation and translation of each bone.
        placed: (V, 3) output array, filled with positions.
        turned: (V, 3) output array, filled with normals.
    """
    for v in range(len(positions)):
        a, b, w = bones[v, 0], bones[v, 1], weights[v]
        x, y, z = positions[v]
        p, q, r = normals[v]
        for k in range(3):
            m0 = matrices[a, k, 0] * (1 - w) + matrices[b, k, 0] * w
            m1 = matrices[a, k, 1] * (1 - w) + matrices[b, k, 1] * w
            m2 = matrices[a, k, 2] * (1 - w) + matrices[b, k, 2] * w
            m3 = matrices[a, k, 3] * (1 - w) + matrices[b, k, 3] * w
            placed[v, k] = m0 * x + m1 * y + m2 * z + m3
            turned[v, k] = m0 * p + m1 * q + m2 * r


@_compiled
def vertex_normals(positions: F32, triangles: Triangles, normals: F32) -> None:
    """Compute the normal of each vertex: the sum of the normals of its triangles.

    Larger triangles have more weight. The normals do not have length 1.

    Args:
        positions: (V, 3).
        triangles: (F, 3) indices of vertices, counterclockwise from outside.
        normals: (V, 3) output array, filled with normals.
    """
    normals[:] = 0
    for f in range(len(triangles)):
        a, b, c = triangles[f]
        ux, uy, uz = positions[b] - positions[a]
        vx, vy, vz = positions[c] - positions[a]
        crossed = (uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx)
        for corner in (a, b, c):
            for k in range(3):
                normals[corner, k] += crossed[k]


@_compiled
def shade(placed: F32, turned: F32, base: F32, eye: F32, rgb: F32) -> None:
    """Compute the colours of lit vertices.

    The light comes from the sky, a key light, a fill light and a rim light. Gloss is added.

    Args:
        placed: (V, 3) positions.
        turned: (V, 3) normals of any length.
        base: (V, 3) unlit colours, from 0 to 1.
        eye: (3,) position of the camera.
        rgb: (V, 3) output array, filled with colours from 0 to 255.
    """
    kx, ky, kz = 0.4130, 0.6884, 0.5966  # towards the key light
    fx, fy, fz = -0.8018, 0.1718, 0.5727
    for v in range(len(placed)):
        nx, ny, nz = turned[v]
        length = max(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-9)
        nx, ny, nz = nx / length, ny / length, nz / length
        ex, ey, ez = eye[0] - placed[v, 0], eye[1] - placed[v, 1], eye[2] - placed[v, 2]
        length = max(np.sqrt(ex * ex + ey * ey + ez * ez), 1e-9)
        ex, ey, ez = ex / length, ey / length, ez / length
        hx, hy, hz = kx + ex, ky + ey, kz + ez
        length = max(np.sqrt(hx * hx + hy * hy + hz * hz), 1e-9)
        key = max(0.0, (nx * kx + ny * ky + nz * kz) * 0.92 + 0.08)
        fill = max(0.0, nx * fx + ny * fy + nz * fz)
        gloss = max(0.0, (nx * hx + ny * hy + nz * hz) / length) ** 36 * 0.14
        rim = (1 - min(1.0, max(0.0, nx * ex + ny * ey + nz * ez))) ** 3 * 0.16
        for k in range(3):
            sky, ground = (0.46, 0.49, 0.55)[k], (0.20, 0.20, 0.22)[k]
            light = (
                ground + (sky - ground) * (0.5 + 0.5 * ny) + (0.74, 0.70, 0.64)[k] * key + (0.12, 0.14, 0.18)[k] * fill
            )
            own = base[v, k] * base[v, k]
            rgb[v, k] = 255 * np.sqrt(min(1.0, own * light + gloss + rim * (0.4 + 0.6 * own)))


@_compiled
def project(placed: F32, view: F32, width: int, height: int, screen: F32) -> None:
    """Project vertices to the screen.

    Args:
        placed: (V, 3) positions.
        view: (3, 4) matrix from world to camera coordinates. The axes of the camera point right, up and towards the
            viewer. Depth is minus the third coordinate. A point with depth 1 and second coordinate 1 is on the upper
            edge of the screen.
        width: Width of the screen in subpixels.
        height: Height of the screen in subpixels.
        screen: (V, 3) output array, filled with column and row (in subpixels) and 1/depth of each vertex. The third
            value is 0 for a vertex behind the camera.
    """
    for v in range(len(placed)):
        x, y, z = placed[v]
        depth = -(view[2, 0] * x + view[2, 1] * y + view[2, 2] * z + view[2, 3])
        inverse = 1 / depth if depth > 1e-3 else 0.0
        across = view[0, 0] * x + view[0, 1] * y + view[0, 2] * z + view[0, 3]
        up = view[1, 0] * x + view[1, 1] * y + view[1, 2] * z + view[1, 3]
        screen[v, 0] = width * 0.5 + across * inverse * height * 0.5
        screen[v, 1] = height * 0.5 - up * inverse * height * 0.5
        screen[v, 2] = inverse


@_compiled
def _area(screen: F32, a: int, b: int, c: int) -> float:
    """Return twice the signed screen area of a triangle: negative if the camera sees the front of the triangle.

    Return 0 if a vertex is behind the camera.
    """
    if screen[a, 2] <= 0 or screen[b, 2] <= 0 or screen[c, 2] <= 0:
        return 0.0
    ax, ay = screen[a, 0], screen[a, 1]
    return float((screen[b, 0] - ax) * (screen[c, 1] - ay) - (screen[b, 1] - ay) * (screen[c, 0] - ax))


@_compiled
def _span(a: float, b: float, c: float, size: int) -> tuple[int, int]:
    """Return the indices of the first and last subpixel that a triangle can cover in a row or column of the screen.

    a, b and c are the coordinates of the triangle's vertices along the row or column, which has `size` subpixels. If no
    subpixel has its centre between these coordinates, the first index is larger than the last index.
    """
    return max(0, int(np.ceil(min(a, b, c) - 0.5))), min(size - 1, int(np.floor(max(a, b, c) - 0.5)))


@_compiled
def fill(screen: F32, rgb: F32, triangles: Triangles, depth: F32, colour: U8) -> None:
    """Draw the front sides of triangles. Each subpixel gets the colour of the nearest triangle (depth test).

    Args:
        screen: (V, 3) column, row and 1/depth of each vertex, from `project`.
        rgb: (V, 3) colours from 0 to 255.
        triangles: (F, 3) indices of vertices.
        depth: (2H, 2W) 1/depth of each subpixel, 0 where nothing has been drawn; changed in place.
        colour: (2H, 2W, 3) colours of the subpixels; changed in place.
    """
    height, width = depth.shape
    for f in range(len(triangles)):
        a, b, c = triangles[f]
        area = _area(screen, a, b, c)
        if area >= 0:  # the triangle faces away, or is behind the camera
            continue
        ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        left, right = _span(ax, bx, cx, width)
        top, bottom = _span(ay, by, cy, height)
        ua, ub = (by - cy) / area, (cy - ay) / area
        va, vb = (cx - bx) / area, (ax - cx) / area
        for row in range(top, bottom + 1):
            y = row + 0.5
            wa = ua * (left + 0.5 - cx) + va * (y - cy)
            wb = ub * (left + 0.5 - cx) + vb * (y - cy)
            for column in range(left, right + 1):
                wc = 1 - wa - wb
                if wa >= 0 and wb >= 0 and wc >= 0:
                    near = wa * screen[a, 2] + wb * screen[b, 2] + wc * screen[c, 2]
                    if near > depth[row, column]:
                        depth[row, column] = near
                        for k in range(3):
                            colour[row, column, k] = np.uint8(wa * rgb[a, k] + wb * rgb[b, k] + wc * rgb[c, k])
                wa += ua
                wb += ub


@_compiled
def cover(screen: F32, triangles: Triangles, mask: U8) -> None:
    """Set a mask to 1 in every subpixel whose centre is covered by a triangle.

    Args:
        screen: (V, 3) column, row and 1/depth of each vertex, from `project`.
        triangles: (F, 3) indices of vertices.
        mask: (2H, 2W) one value for each subpixel; changed in place.
    """
    height, width = mask.shape
    for f in range(len(triangles)):
        a, b, c = triangles[f]
        area = _area(screen, a, b, c)
        if area == 0:
            continue
        ax, ay, bx, by, cx, cy = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        left, right = _span(ax, bx, cx, width)
        top, bottom = _span(ay, by, cy, height)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                x, y = column + 0.5, row + 0.5
                wa = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area
                wb = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area
                if wa >= 0 and wb >= 0 and wa + wb <= 1:
                    mask[row, column] = 1


@_compiled
def floor(view: F32, eye: F32, centre: F32, sky: F32, line: F32, image: U8) -> None:
    """Draw the floor as a grid: a line every metre, and a thinner line every 0.25 m.

    Args:
        view: (3, 4) matrix, as in `project`, of a camera that is not tilted sideways.
        eye: (3,) position of the camera.
        centre: (3,) point of the floor. Lines fade with the distance from this point, and end at 5 m.
        sky: (3,) colour of the background, from 0 to 255.
        line: (3,) colour of the floor's lines, from 0 to 255.
        image: (H, W, 3) image that contains only the colour `sky`; changed in place.
    """
    height, width = image.shape[:2]
    zoom = np.sqrt(view[1, 0] ** 2 + view[1, 1] ** 2 + view[1, 2] ** 2)
    for row in range(height):
        up = (1 - (row + 0.5) * 2 / height) / zoom**2
        dy = up * view[1, 1] - view[2, 1]
        far = (centre[1] - eye[1]) / dy if dy < -1e-4 else -1.0
        if not 0 < far < 50:
            continue
        step = 2 * far / (height * zoom)  # width and depth of a pixel on the floor, in metres
        deep = step / max(-dy, 1e-3)
        main = 1.4 * (1 - min(1.0, max(0.0, deep - 0.2) / 0.5))
        fine = 0.63 * (1 - min(1.0, max(0.0, 4 * deep - 0.2) / 0.5))
        for column in range(width):
            across = ((column + 0.5) * 2 - width) / (height * zoom**2)
            x = eye[0] + far * (across * view[0, 0] + up * view[1, 0] - view[2, 0])
            z = eye[2] + far * (across * view[0, 2] + up * view[1, 2] - view[2, 2])
            away = (x - centre[0]) ** 2 + (z - centre[2]) ** 2
            if away > 25:
                continue
            dark = 0.0
            for place, wide in ((x, step), (z, deep)):
                dark = max(dark, main * (1 - abs(place - np.round(place)) / (1.4 * wide)))
                dark = max(dark, fine * (1 - abs(4 * place - np.round(4 * place)) / (4.8 * wide)))
            if dark > 0:
                near = 1 - max(0.0, np.sqrt(away) - 1.2) / 3.8
                dark = min(1.0, dark) * min(1.0, near) ** 2 * 0.9
                for k in range(3):
                    image[row, column, k] = np.uint8(sky[k] + (line[k] - sky[k]) * dark)


@_compiled
def compose(depth: F32, colour: U8, mask: U8, light: float, image: U8) -> None:
    """Draw figures over an image of the floor, and darken the floor in the shadow.

    Each pixel gets the mean colour of its subpixels.

    Args:
        depth: (2H, 2W) 1/depth of each subpixel, 0 where no figure has been drawn.
        colour: (2H, 2W, 3) colours of the subpixels.
        mask: (2H, 2W) 1 for subpixels in the shadow, otherwise 0.
        light: Brightness of the floor in the shadow, relative to the floor outside the shadow.
        image: (H, W, 3) image of the floor; changed in place.
    """
    height, width = image.shape[:2]
    for row in range(height):
        for column in range(width):
            free, dark = 0, 0
            red, green, blue = 0, 0, 0
            for r in (2 * row, 2 * row + 1):
                for c in (2 * column, 2 * column + 1):
                    if depth[r, c] > 0:
                        red += colour[r, c, 0]
                        green += colour[r, c, 1]
                        blue += colour[r, c, 2]
                    else:
                        free += 1
                        dark += mask[r, c]
            if free < 4 or dark > 0:
                seen = free - dark + dark * light
                image[row, column, 0] = np.uint8((red + seen * image[row, column, 0]) * 0.25)
                image[row, column, 1] = np.uint8((green + seen * image[row, column, 1]) * 0.25)
                image[row, column, 2] = np.uint8((blue + seen * image[row, column, 2]) * 0.25)


@_compiled
def lay_over(image: U8, layer: U8, left: int, top: int) -> None:
    """Blend a layer with transparency into an image; pixels of the layer outside the image are ignored.

    Args:
        image: (H, W, 3) RGB image; changed in place.
        layer: (h, w, 4) RGBA image of any height h and width w.
        left: Column of the image for the layer's first column; may be negative.
        top: Row of the image for the layer's first row; may be negative.
    """
    for row in range(max(0, -top), min(layer.shape[0], image.shape[0] - top)):
        for column in range(max(0, -left), min(layer.shape[1], image.shape[1] - left)):
            opaque = int(layer[row, column, 3])
            for k in range(3):
                behind = int(image[top + row, left + column, k])
                image[top + row, left + column, k] = (
                    layer[row, column, k] * opaque + behind * (255 - opaque) + 127
                ) // 255
