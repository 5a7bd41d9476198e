"""The .skeleton files of NTU RGB+D, as github.com/shahroudy/NTURGB-D describes them.

Words with white space between them. First the number of frames; for each frame the number of bodies
in it; for each body its tracking number and nine more words, then the number of its joints, 25; for
each joint 12 numbers, of which the first three are its place in metres. The name of a file says
what it holds, as in S001C002P003R002A013.skeleton: setup, camera, person, repetition and action.
"""

import re

import numpy as np
import torch

from bench.arguments import UserError

JOINTS, PERSONS = 25, 2
BODY_WORDS, JOINT_WORDS = 10, 12
ORIGIN = 1  # the joint at the middle of the spine
NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})\.skeleton")
# Shahroudy et al. 2016, arXiv 1604.02808: who is trained on.
SUBJECTS = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
CAMERAS = {2, 3}


def load(folder, split):
    """{"train": [(joints (T, 50, 3), action)], "test": ...} of all files of a folder; those in
    which no body was seen are left out. The split is by "subject" or by "view"."""
    parts = {"train": [], "test": []}
    for path in sorted(folder.glob("*.skeleton")):
        name = NAME.fullmatch(path.name)
        if not name:
            raise UserError(f"{path} is not named as the files of NTU RGB+D are")
        _, camera, person, _, action = map(int, name.groups())
        is_for_training = person in SUBJECTS if split == "subject" else camera in CAMERAS
        joints = read(path)
        if joints is not None:
            parts["train" if is_for_training else "test"].append((joints, action))
    return parts


def read(path):
    """The joints (T, 50, 3) of the two bodies that move most, in metres from the middle of the
    spine of the first one when it is first seen; 0 where a body is not seen. None without a body.

    Of what a camera takes for bodies, those that do not move are chairs and tables.
    """
    words = path.read_text().split()
    try:
        bodies = read_bodies(words)
    except (IndexError, ValueError) as error:
        raise UserError(f"{path} is broken: {error}") from None
    if not bodies:
        return None
    most = sorted(bodies, key=lambda joints: -np.nanvar(joints, (0, 1)).sum())[:PERSONS]
    (first, *_) = most[0][~np.isnan(most[0][:, 0, 0])]
    joints = np.zeros((len(most[0]), PERSONS * JOINTS, 3), np.float32)
    for index, body in enumerate(most):
        joints[:, index * JOINTS : (index + 1) * JOINTS] = np.nan_to_num(body - first[ORIGIN])
    return torch.from_numpy(joints)


def read_bodies(words):
    """[joints (T, 25, 3)] of each tracking number, NaN where it is not seen."""
    frames, place, bodies = int(words[0]), 1, {}
    for frame in range(frames):
        count, place = int(words[place]), place + 1
        for _ in range(count):
            number, joints = words[place], int(words[place + BODY_WORDS])
            if joints != JOINTS:
                raise ValueError(f"a body of {joints} joints, not {JOINTS}")
            place += BODY_WORDS + 1
            values = words[place : place + JOINTS * JOINT_WORDS]
            place += len(values)
            body = bodies.setdefault(number, np.full((frames, JOINTS, 3), np.nan))
            body[frame] = np.array(values, float).reshape(JOINTS, JOINT_WORDS)[:, :3]
    if place != len(words):
        raise ValueError(f"{len(words) - place} words too many")
    return list(bodies.values())
