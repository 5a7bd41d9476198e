"""The authors' language models, against loops with their formulas."""

import pytest
import torch
from interop_cases import Authors, B, H, K, double, numbers
from torch import nn

from fastindrnn import DenseIndRNN, IndRNN, ResidualIndRNN
from fastindrnn.interop import load_authors, to_authors
from fastindrnn.norm import StepBatchNorm
from fastindrnn.sequences import Sequences

# The authors' language models: an embedding, a stack with norms per step, in the plain and the
# residual one another layer, with bn_before another norm, a decoder. Tokens are (T, B).

TOKENS, STEPS = 13, 4 * 3 + 1


class Language(Authors):
    """As `Authors`, with a norm of each time step by its own statistics."""

    def make_norm(self, name, features):
        self.state |= {
            f"{name}.weight": numbers(features),
            f"{name}.bias": numbers(features),
            f"{name}.running_mean": numbers(STEPS, features),
            f"{name}.running_var": torch.rand(STEPS, features).double() + 0.5,
            f"{name}.num_batches_tracked": torch.tensor(9),
        }

    def make_act(self, name, features):
        self.state[f"{name}{self.recurrent}.weight_hh"] = torch.rand(features).double()
        self.make_norm(f"{name}.norm1", features)

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.state[f"{name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        rows = [
            (row - mean[t]) / torch.sqrt(var[t] + 1e-5) * weight + bias for t, row in enumerate(x)
        ]
        return torch.stack(rows)

    def model(self, stack, behind, extra):
        """Tokens to the logits of the whole network; `extra` is the name of the last norm."""
        self.state["encoder.weight"] = numbers(TOKENS, K)
        self.state["decoder.weight"], self.state["decoder.bias"] = numbers(TOKENS, K), numbers(13)
        if self.position == "before":
            self.make_norm(extra, K)

        def run(tokens):
            y = behind(stack(self.state["encoder.weight"][tokens]))
            y = self.norm(extra, y) if self.position == "before" else y
            return y @ self.state["decoder.weight"].T + self.state["decoder.bias"]

        return run

    def last_layer(self):
        self.make_linear("last_fc", H, K)
        self.make_act("last_indrnn", K)
        return lambda x: self.act("last_indrnn", self.linear("last_fc", x))


def language_options(position):
    return {"norm": "batch_per_step", "norm_position": position, "norm_steps": STEPS}


def plain_language_model(position):
    net = Language(position)
    for i in range(2):
        net.make_linear(f"DIs.{i}", H if i else K, H)
        net.make_act(f"RNNs.{i}", H)

    def stack(x):
        for i in range(2):
            x = net.act(f"RNNs.{i}", net.linear(f"DIs.{i}", x))
        return x

    run = net.model(stack, net.last_layer(), "extra_bn")
    return net, run, double(IndRNN, K, H, 2, **language_options(position))


def residual_language_model(position):
    net, names = Language(position), ["resblocks.0", "resblocks.1"]
    net.make_linear("fc0", K, H)
    for name in names:
        for i in (1, 2):
            net.make_act(f"{name}.IndRNNwithBN{i}", H)
            net.make_linear(f"{name}.fc{i}", H, H)
    net.make_act("IndRNNwithBN_resfinal", H)

    def stack(x):
        x = net.linear("fc0", x)
        for name in names:
            y = net.linear(f"{name}.fc1", net.act(f"{name}.IndRNNwithBN1", x))
            x = x + net.linear(f"{name}.fc2", net.act(f"{name}.IndRNNwithBN2", y))
        return net.act("IndRNNwithBN_resfinal", x)

    run = net.model(stack, net.last_layer(), "extra_bn")
    return net, run, double(ResidualIndRNN, K, H, 2, **language_options(position))


def dense_language_model(position, growth=3, blocks=(2, 1)):
    """The first block reads the embedding; the last transition goes back to its size."""
    net, features, parts = Language(position), K, []
    for i, layers in enumerate(blocks):
        pairs = []
        for j in range(layers):
            pair = f"DenseBlocks.{i}.denselayers.{j}"
            net.make_linear(f"{pair}.fc1", features, 4 * growth)
            net.make_act(f"{pair}.IndRNNwithBN1", 4 * growth)
            net.make_linear(f"{pair}.fc2", 4 * growth, growth)
            net.make_act(f"{pair}.IndRNNwithBN2", growth)
            features += growth
            pairs.append(pair)
        size = K if i == len(blocks) - 1 else features // 2
        net.make_linear(f"TransBlocks.{i}.fc", features, size)
        net.make_act(f"TransBlocks.{i}.IndRNNwithBN1", size)
        features = size
        parts.append((pairs, f"TransBlocks.{i}"))

    def stack(x):
        for pairs, end in parts:
            for pair in pairs:
                y = net.act(f"{pair}.IndRNNwithBN1", net.linear(f"{pair}.fc1", x))
                y = net.act(f"{pair}.IndRNNwithBN2", net.linear(f"{pair}.fc2", y))
                x = torch.cat([x, y], 2)
            x = net.act(f"{end}.IndRNNwithBN1", net.linear(f"{end}.fc", x))
        return x

    run = net.model(stack, lambda x: x, f"TransBlocks.{len(blocks) - 1}.extra_bn")
    options = language_options(position) | {"first_features": 0, "last_features": K}
    return net, run, double(DenseIndRNN, K, growth, blocks, **options)


NORM = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("position", ["after", "before"])
@pytest.mark.parametrize(
    "network", [plain_language_model, residual_language_model, dense_language_model]
)
def test_authors_language_models(network, position):
    net, run, stack = network(position)
    rest = load_authors(stack, net.state)
    parts, around = [stack], ("encoder.weight", "decoder.weight", "decoder.bias")
    if network is not dense_language_model:
        parts.append(double(IndRNN, H, K, **language_options(position)))
        rest = load_authors(parts[1], rest)
    tokens = torch.randint(TOKENS, (STEPS - 2, B))
    x = nn.functional.embedding(tokens, rest.pop("encoder.weight"))
    for part in parts:
        x, _ = part.eval()(x)
    extra = {key: value for key, value in rest.items() if key.startswith("extra_bn.")}
    assert bool(extra) == (position == "before")
    if extra:
        assert set(extra) == {f"extra_bn.{key}" for key in (*NORM, "num_batches_tracked")}
        norm = StepBatchNorm(K, STEPS, dtype=torch.float64).eval()
        norm.load_state_dict({key: extra[f"extra_bn.{key}"] for key in NORM})
        x = norm(x.transpose(0, 1), Sequences(B)).transpose(0, 1)
    x = nn.functional.linear(x, rest.pop("decoder.weight"), rest.pop("decoder.bias"))
    assert rest.keys() == extra.keys()
    torch.testing.assert_close(x, run(tokens))
    back = to_authors(stack)
    names = {key for key in net.state if not key.startswith((*around, "last_"))}
    assert back.keys() == {key for key in names if "extra_bn" not in key}
    for key, value in back.items():
        expected = 0 * net.state[key] if key.endswith("tracked") else net.state[key]
        assert torch.equal(value, expected), key
