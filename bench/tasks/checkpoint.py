"""What a run leaves behind, so that it can go on: nothing but tensors and plain values."""

import hashlib
import io
import warnings

import torch

from bench.arguments import UserError
from bench.environment import write

FORMAT = 3


def digest(content):
    """SHA-256 over all that nested dicts hold: an edited checkpoint no longer has its own."""
    if isinstance(content, dict):
        parts = [repr(key) + digest(value) for key, value in content.items()]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    if isinstance(content, torch.Tensor):
        return f"{content.shape}{hashlib.sha256(content.cpu().numpy().tobytes()).hexdigest()}"
    return hashlib.sha256(repr(content).encode()).hexdigest()


def save(path, task, settings, learners):
    content = {
        "task": task,
        "settings": settings,
        "learners": {learner.name: learner.state_dict() for learner in learners},
        "random_state": torch.get_rng_state(),
        "cuda_random_states": dict(enumerate(torch.cuda.get_rng_state_all())),
    }
    # torch.save says of a full disk no more than that a write failed.
    whole = io.BytesIO()
    torch.save(content | {"format": FORMAT, "digest": digest(content)}, whole)
    write(path, whole.getbuffer())


def restore(learners, checkpoint):
    """Puts the learners where the checkpoint left them; those that it does not hold start anew."""
    try:
        for learner in learners:
            if learner.name in checkpoint["learners"]:
                learner.load_state_dict(checkpoint["learners"][learner.name])
    except (KeyError, RuntimeError, ValueError) as error:  # of another version of the package
        raise UserError(f"the checkpoint does not fit the model: {reason_of(error)}") from None
    torch.set_rng_state(checkpoint["random_state"])
    for index, state in checkpoint["cuda_random_states"].items():
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, index)


def load(path, task):
    """The content of a checkpoint, or a UserError that says what is wrong with the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except Exception as error:
        reason = reason_of(error)
        if "weights_only" in str(error):  # PyTorch's text says how to load the file unsafely
            reason = "it holds more than tensors and plain values"
        raise UserError(f"{path} is not a checkpoint that can be read: {reason}") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version of the benchmark")
    if content.pop("digest", None) != digest(content):
        raise UserError(f"{path} has been changed since it was saved")
    if content["task"] != task:
        raise UserError(f"{path} is of python -m bench {content['task']}, not of {task}")
    return content


def reason_of(error):
    return (str(error).strip() or repr(error)).splitlines()[0]
