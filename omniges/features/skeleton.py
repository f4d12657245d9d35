"""Skeletons that motion is exported on: SMPL-X's joints with the bone lengths of the generic or of a person's body.

Angles of hands are relative to the mean hand of SMPL-X's model. The generic skeleton has none: its hands
are flat at rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.body import (
    BODY_COLUMNS,
    PARENTS,
    PELVIS_BELOW_TRANS_M,
    REST_OFFSETS,
    Person,
    forward_kinematics,
    parent_offsets,
    rotations_of,
)
from omniges.features.gesture import POSE_COLUMNS

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """Bones of a figure in the joint order of `JOINT_NAMES`; lengths in metres, y up, facing +z."""

    offsets: F64
    """(55, 3) position of each joint relative to its parent in the rest pose; zeros for the pelvis."""
    pelvis: F64
    """(3,) position of the pelvis relative to SMPL-X's ``trans``."""
    mean_hands: F64
    """(90,) angles in radians that are added to those of the hands."""

    @classmethod
    def of_person(cls, person: Person) -> Skeleton:
        """Return the skeleton of a body model with one person's shape."""
        offsets = parent_offsets(person.rest_joints)
        return cls(offsets, person.rest_joints[0], person.model.mean_hands)

    @property
    def rest_positions(self) -> F64:
        """(55, 3) positions in the rest pose, the pelvis at the origin."""
        turned = np.broadcast_to(np.eye(3), (1, len(PARENTS), 3, 3))
        return np.asarray(forward_kinematics(turned, self.offsets, np.zeros((1, 3)))[1][0])

    def local_rotations(self, poses: Numbers) -> F64:
        """Return rotation matrices (T, 55, 3, 3), each relative to the parent, of poses (T, 165) in radians."""
        if poses.ndim != 2 or poses.shape[1] != POSE_COLUMNS:
            raise ValueError(f"expected poses (T, {POSE_COLUMNS}), found {poses.shape}")
        full = np.array(poses, dtype=np.float64)
        full[:, BODY_COLUMNS:] += self.mean_hands
        return rotations_of(full)

    def pelvis_positions(self, trans: Numbers) -> F64:
        """Return positions (T, 3) of the pelvis in metres for SMPL-X's ``trans`` (T, 3)."""
        return np.asarray(trans + self.pelvis, np.float64)

    def joint_positions(self, poses: Numbers, trans: Numbers) -> F64:
        """Return world positions (T, 55, 3) in metres by forward kinematics.

        Args:
            poses: (T, 165) axis-angles in radians.
            trans: (T, 3) metres.

        Returns:
            Positions of the joints.
        """
        return forward_kinematics(self.local_rotations(poses), self.offsets, self.pelvis_positions(trans))[1]


GENERIC: Final = Skeleton(
    REST_OFFSETS, np.array([0.0, -PELVIS_BELOW_TRANS_M, 0.0]), np.zeros(POSE_COLUMNS - BODY_COLUMNS)
)
"""Bones of an adult of about 1.7 m, the same for everybody."""
