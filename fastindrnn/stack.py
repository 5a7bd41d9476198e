"""What all stacks have in common: the forms of input and state, and streaming."""

from typing import TYPE_CHECKING, Any, NoReturn, overload

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .checks import check_floating, check_step, refuse_script
from .norm import refuse_step
from .options import Direction
from .sequences import Sequences, prepare_input


class Stack(nn.Module):
    """What `IndRNN`, `ResidualIndRNN`, `DenseIndRNN` and `Bidirectional` share: the forms of input
    and state, and streaming.

    `isinstance(module, Stack)` finds them in a model. A subclass of your own sets the attributes
    below and gives the methods `state_shape` and `_run_sequences`; `forward` and `step` come from
    here.

    Attributes:
        input_size: features of the input.
        output_size: features of the output.
        batch_first: whether inputs and outputs are (B, T, features), not (T, B, features).
        zoneout: probability of zoneout, 0 without it.

    Raises:
        NotImplementedError: at a call, where the subclass lacks one of the methods.
    """

    input_size: int
    output_size: int
    batch_first: bool
    zoneout: float

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)

    def state_shape(self) -> tuple[int, ...]:
        """What `h_n` and `hx` look like.

        Returns:
            Their shape without the batch, which stands before the last dimension.

        Raises:
            NotImplementedError: the subclass does not say.
        """
        raise NotImplementedError

    def _run_sequences(
        self, x: Tensor, sequences: Sequences, state: Tensor | None, direction: Direction
    ) -> tuple[Tensor, Tensor]:
        """Input (B, T, features) or (total, features) and states (..., B, units) to the output, of
        the input's form, and the last states."""
        raise NotImplementedError

    if TYPE_CHECKING:  # nn.Module calls `forward` and does not say what that returns

        @overload
        def __call__(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Tensor | None = None,
            resets: Tensor | None = None,
            time_step: int | None = None,
        ) -> tuple[Tensor, Tensor]: ...

        @overload
        def __call__(
            self, input: PackedSequence, hx: Tensor | None = None, *, time_step: int | None = None
        ) -> tuple[PackedSequence, Tensor]: ...

        def __call__(self, *args: Any, **options: Any) -> Any: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        time_step: int | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """The output at each step and the last states.

        Args:
            input: (T, B, I); with batch_first (B, T, I); (T, I) for one sequence without a batch;
                or a PackedSequence.
            hx: initial states, of the shape of h_n; zeros if None. Where h_n of one chunk of a
                stream is hx of the next, |u| must be 1 at most, or the states grow from chunk to
                chunk until they overflow; `recurrent_max=0.99` keeps their size the same however
                long the stream is.
            lengths: (B,) integer tensor on the input's device: steps from there on are padding;
                their output is 0.
            resets: booleans of the input's first two dimensions: such a step starts a new sequence,
                in both directions.
            time_step: which step of its sequence the input begins with; it matters for
                norm="batch_per_step" alone, which needs it where `hx` is given. 0 if None.

        A PackedSequence takes neither `lengths` nor `resets`; its states are in the caller's order.

        Returns:
            output, of the input's form; h_n, the state of each recurrence after the last step that
            it computes (in reverse direction the first of the sequence): the class says in which
            order. It is the recurrence's own state, before the norm and the dropout behind it, so
            that with these the last output differs from it.

        Raises:
            TypeError, ValueError: an argument does not fit; raised before any computation.
        """
        prepared = prepare_input(input, self.input_size, self.batch_first, lengths, resets)
        if self.zoneout and (resets is not None or isinstance(input, PackedSequence)):
            raise ValueError("zoneout needs padded sequences without resets")
        state = None if hx is None else prepared.prepare_states(hx, self.state_shape())
        prepared.sequences.first_step = _first_step(time_step, hx)
        x, h_n = self._run_sequences(prepared.x, prepared.sequences, state, "forward")
        return prepared.restore(x), prepared.restore_states(h_n)

    def step(
        self, x_t: Tensor, state: Tensor | None = None, *, time_step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One time step, for streams: after `eval()` the numbers of the full pass, to rounding.

        The state has the input's dtype. In bfloat16 and float16, which round it at every step, a
        neuron remembers for some hundred steps at most: keep streams in float32.

        Args:
            x_t: (B, I) or (I,).
            state: as h_n of the full pass; zeros if None. In a stream without an end |u| must be 1
                at most, or the states grow until they overflow; take `recurrent_max=0.99`.
            time_step: which step of the sequence this is; it matters for norm="batch_per_step"
                alone, which needs it where `state` is given. 0 if None.

        Returns:
            y_t (B, features) or (features,), and the state for the next step.

        Raises:
            TypeError, ValueError: an argument does not fit; the stack is in training mode and has
                batch norm, whose statistics are over all steps.
        """
        check_step(x_t, self.input_size)
        check_floating("x_t", x_t)
        if self.training:
            refuse_step(self)
        has_batch = x_t.dim() == 2
        prepared = prepare_input(x_t.unsqueeze(-2), self.input_size, True, None, None)
        prepared.sequences.first_step = _first_step(time_step, state)
        if state is not None:
            state = prepared.prepare_states(state, self.state_shape(), "state")
        y, state = self._run_sequences(prepared.x, prepared.sequences, state, "forward")
        y = y[:, 0] if has_batch else y[0, 0]
        return y, prepared.restore_states(state)


def _first_step(time_step: int | None, state: Tensor | None) -> int | None:
    """The time step that an input begins with; None if nobody said and it need not be the first."""
    if time_step is None:
        return 0 if state is None else None
    if isinstance(time_step, bool) or not isinstance(time_step, int):
        raise TypeError(f"time_step must be an int or None, but is {type(time_step).__name__}")
    if time_step < 0:
        raise ValueError(f"time_step must be at least 0, but is {time_step}")
    return time_step
