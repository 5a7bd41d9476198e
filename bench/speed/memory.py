"""The most memory that a training step holds at once, beside its input and its parameters."""

import torch


class TrainingStep:
    """Called, it returns the output of `forward(x)`, and the gradients of x and parameters."""

    def __init__(self, forward, x, parameters, grad):
        self.forward, self.leaves, self.grad = forward, [x, *parameters], grad

    def __call__(self):
        output = self.forward(self.leaves[0])
        grads = torch.autograd.grad(output, self.leaves, self.grad, allow_unused=True)
        return output.detach(), grads


class Watched:
    """Calls a `TrainingStep`; `held` is then the most bytes that the last call held.

    GPU: the most that PyTorch had allocated, less what it had before. CPU: what autograd saved for
    the backward, each storage once, and the output; gradients come on top.
    """

    def __init__(self, step):
        self.step, self.held = step, None

    def __call__(self):
        device = self.step.grad.device
        if device.type == "cuda":
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            result = self.step()
            self.held = torch.cuda.max_memory_allocated(device) - before
            return result
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = self.step()
        keep(result[0])
        for leaf in self.step.leaves:
            kept.pop(leaf.untyped_storage().data_ptr(), None)
        self.held = sum(kept.values())
        return result
