"""What to take from the outputs of a stack."""

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from .checks import check_bools, check_lengths


def last_output(
    output: Tensor, lengths: Tensor | None = None, *, batch_first: bool = False
) -> Tensor:
    """The output at each sequence's last step: what a classifier of whole sequences takes.

    h_n is the state of the recurrence, before a norm that comes after it; `output` has the norm.

    Args:
        output: (T, B, F), or (B, T, F) with batch_first: what a layer returned for a padded batch.
            Of a PackedSequence take `last_output(*pad_packed_sequence(output))`. With two
            directions, the features of the reverse one, the second half, end at time 0: take
            `output[0, :, F // 2 :]` for them.
        lengths: (B,) integers from 0 to T, as given to the layer; None: all have T steps.
        batch_first: as in the layer.

    Returns:
        (B, F); zeros for a sequence without steps.

    Raises:
        TypeError, ValueError: an argument does not fit, or T is 0.

    Example:
        >>> rnn = fastindrnn.IndRNN(10, 20, batch_first=True)
        >>> lengths = torch.tensor([7, 4, 1])
        >>> output, _ = rnn(torch.randn(3, 7, 10), lengths=lengths)
        >>> last = last_output(output, lengths, batch_first=True)  # (3, 20)
    """
    if not isinstance(output, Tensor):
        packed = isinstance(output, PackedSequence)
        advice = ": torch.nn.utils.rnn.pad_packed_sequence makes it one" if packed else ""
        raise TypeError(f"output must be a tensor, but is {type(output).__name__}{advice}")
    check_bools(batch_first=batch_first)
    if output.dim() != 3:
        raise ValueError(f"output must have 3 dimensions, but has shape {tuple(output.shape)}")
    by_sequence = output if batch_first else output.transpose(0, 1)
    B, T, _ = by_sequence.shape
    if T == 0:
        raise ValueError("output has no time steps, so that there is no last one")
    if lengths is None:
        return by_sequence[:, -1]
    check_lengths(lengths, B, T, output.device)
    last = (lengths - 1).clamp(min=0)
    return by_sequence.take_along_dim(last[:, None, None], 1).squeeze(1)
