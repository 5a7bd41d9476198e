"""`python -m bench algorithms`: the data are those of the problems, the figures what they say."""

import math
from collections import defaultdict

import pytest
import torch
from bench_command import SMALL, report, run
from torch import nn

from bench.tasks import algorithms, ntm, problems
from fastindrnn import IndRNN


def source(seed=3):
    return torch.Generator().manual_seed(seed)


def rows(sequences):
    """Each sequence as a list of tuples of numbers, one for each step."""
    return [[tuple(step) for step in sequence] for sequence in sequences.tolist()]


def silent(steps, channels):
    return [(0.0,) * channels] * steps


def test_copy_is_the_same_sequence():
    for inputs, answers in zip(*map(rows, problems.copy(source(), 20, 5)), strict=True):
        assert inputs[5:] == [(0.0,) * 8 + (1.0,), *silent(5, 9)]
        assert [step[:8] for step in inputs[:5]] == answers
        assert all(bit in (0, 1) for step in answers for bit in step)


def test_places_are_one_channel_for_each_step():
    inputs, answers = problems.copy_with_places(source(), 6, 5)
    plain, same = problems.copy(source(), 6, 5)
    assert torch.equal(answers, same)
    assert torch.equal(inputs[..., :9], plain)
    shown = inputs[0, :, 9:].nonzero().tolist()
    assert shown == [[k, k] for k in range(5)] + [[6 + k, problems.PLACES + k] for k in range(5)]


def test_repeat_is_the_sequence_so_often_and_an_end():
    for repeats in 1, 3, 10:
        made = problems.repeat(source(), 20, 4, repeats)
        for inputs, answers in zip(*map(rows, made), strict=True):
            mark = inputs[4]
            assert mark[:9] == (0.0,) * 8 + (1.0,)
            assert inputs[5:] == silent(4 * repeats + 1, 10)
            assert answers[:-1] == [(*step[:8], 0.0) for step in inputs[:4]] * repeats
            assert answers[-1] == (0.0,) * 8 + (1.0,)
    marks = torch.tensor(
        [problems.repeat(source(), 1, 1, n)[0][0, 1, 9].item() for n in range(1, 11)]
    )
    assert marks.mean().item() == pytest.approx(0, abs=1e-6)
    assert marks.std(correction=0).item() == pytest.approx(1)


def test_recall_is_the_item_after_the_one_asked_for():
    asked = set()
    for inputs, answers in zip(*map(rows, problems.recall(source(), 100, 4)), strict=True):
        items = [inputs[4 * k : 4 * k + 4] for k in range(4)]
        assert all(item[0] == (*(0.0,) * 6, 1.0, 0.0) for item in items)
        query = inputs[16:]
        assert query[0] == query[4] == (*(0.0,) * 6, 0.0, 1.0)
        assert query[5:] == silent(3, 8)
        (place,) = [k for k, item in enumerate(items) if item[1:] == query[1:4]]
        assert answers == [step[:6] for step in items[place + 1][1:]]
        asked.add(place)
    assert asked == {0, 1, 2}


def test_sort_gives_the_highest_priorities_first():
    for inputs, answers in zip(*map(rows, problems.sort(source(), 20, 10)), strict=True):
        assert inputs[10:] == [(*(0.0,) * 9, 1.0), *silent(8, 10)]
        assert all(-1 <= step[8] <= 1 and step[9] == 0 for step in inputs[:10])
        assert answers == [step[:8] for step in sorted(inputs[:10], key=lambda step: -step[8])[:8]]


def test_ngrams_answer_the_next_bit_and_cost_what_beta_says():
    """Each context's bits have the Beta(1/2, 1/2) binomial's probability, whatever their order."""
    inputs, answers = problems.ngrams(source(), 50, 200)
    assert inputs.shape == (50, 204, 1)
    assert torch.equal(inputs[:, 5:], answers[:, :-1])
    log = 0.0
    for sequence in torch.cat([inputs[:, :, 0], answers[:, -1]], 1).int().tolist():
        counts = defaultdict(lambda: [0, 0])
        for end in range(5, 205):
            counts[tuple(sequence[end - 5 : end])][sequence[end]] += 1
        for zeros, ones in counts.values():
            whole = (
                math.lgamma(0.5 + zeros) + math.lgamma(0.5 + ones) - math.lgamma(zeros + ones + 1)
            )
            log += whole - 2 * math.lgamma(0.5)
    cost = problems.least_bits(inputs, answers)
    assert cost == pytest.approx(-log / math.log(2) / 50, rel=1e-4)
    assert 120 < cost < 140, "Graves et al.: about 131"


def test_bits_are_the_code_length_of_a_sequence():
    inputs, answers = problems.copy(source(), 6, 3)
    odds = torch.rand(6, 7, 8, generator=source())
    coins = torch.distributions.Bernoulli(odds[:, -3:])
    expected = -coins.log_prob(answers).sum((1, 2)).mean() / math.log(2)
    assert algorithms.bits(lambda x: odds.logit(), [(inputs, answers)]) == pytest.approx(
        expected.item(), rel=1e-5
    )


def made(**changed):
    settings = {
        name.replace("-", "_"): default
        for name, (default, *_) in algorithms.Algorithms.SETTINGS.items()
    }
    return algorithms.Algorithms(settings | {"device": "cpu", "hidden": 8} | changed)


def test_sequences_grow_and_those_that_are_held_out_are_always_the_same():
    task, other = made(seed=0), made(seed=1)
    lengths = [task.make_batch(source(k), 1, k / 40)[1].shape[1] for k in range(1, 41)]
    assert max(lengths[:2]) <= 2
    assert max(lengths) > 10
    assert all(length <= 1 + math.ceil(19 * k / 40) for k, length in enumerate(lengths, 1))
    assert task.alone["120"][0][1].shape == (128, 120, 8)
    pairs = [(task.held_out, other.held_out), (task.alone["30"], other.alone["30"])]
    for one, two in pairs:
        for batches in zip(one, two, strict=True):
            assert all(map(torch.equal, *batches))


@pytest.mark.parametrize("problem", problems.PROBLEMS)
def test_every_problem_is_trained_and_evaluated(problem, tmp_path):
    more = ["--steps", 2, "--batch", 2, "--layers", 1, "--model", "indrnn,lstm"]
    run("algorithms", *SMALL, *more, "--problem", problem, "--out", tmp_path)
    content = report(tmp_path)
    for result in content["models"].values():
        (line,) = result["validations"]
        assert all(0 < cost < math.inf for cost in (line["bits"], *result["alone"].values()))
        assert len(result["alone"]) == len(problems.PROBLEMS[problem].alone)
    assert ("least_bits" in content) == (problem == "ngrams")


def test_half_of_the_neurons_start_as_stores():
    torch.manual_seed(0)
    model = algorithms.Network("residual", 9, 64, 2, 8)
    found = [u for name, u in model.named_parameters() if "weight_hh" in name]
    assert len(found) == 5
    for u in found:
        assert 0.25 < (u == 1).double().mean() < 0.75
        assert (u[u != 1] <= 0.2).all()
        assert (u >= 0).all()


def copier(places):
    """(IndRNN, head) that copy up to so many vectors, by weights that nobody has trained."""
    stores, steps = 8 * places, places + 2
    count = 8 + steps
    rnn = IndRNN(9, stores + steps, num_layers=5, batch_first=True)
    head = nn.Linear(stores + steps, 8)
    for parameter in (*rnn.parameters(), *head.parameters()):
        nn.init.zeros_(parameter)
        parameter.requires_grad_(False)
    layers = [
        [getattr(rnn, f"{name}_l{k}") for name in ("weight_ih", "weight_hh", "bias_ih")]
        for k in range(5)
    ]
    (count_w, count_u, count_b), (place_w, place_u, place_b), (write_w, _, write_b), *rest = layers
    (store_w, store_u, _), (read_w, _, read_b) = rest
    # 1: the vector; steps so far; 1 from the mark on.
    count_w[:8, :8] = place_w[:8, :8] = torch.eye(8)
    count_u[8:10] = count_b[8] = count_w[9, 8] = 1
    # 2: the vector; relu(steps - k); steps since the mark.
    place_w[8:count, 8] = 1
    place_b[8:count] = -torch.arange(steps)
    place_w[count, 9] = place_u[count] = 1
    # 3: bit of the vector and step k; relu(steps since the mark - k).
    write_w[stores:, count] = 1
    write_b[stores:] = -torch.arange(steps)
    # 4: the same, kept. 5: kept bit and step k after the mark.
    store_w.copy_(torch.eye(len(store_w)))
    store_u[:stores] = 1
    write_b[:stores] = read_b[:stores] = -1
    read_w[:stores, :stores] = torch.eye(stores)
    at_step = torch.tensor([1.0, -2.0, 1.0])  # 1 where steps - k is 1, 0 at other whole numbers
    for neuron in range(stores):
        place, bit = divmod(neuron, 8)
        write_w[neuron, bit] = 1
        write_w[neuron, 8 + place : 8 + place + 3] = at_step
        # The first answer is at the second step since the mark.
        read_w[neuron, stores + place + 1 : stores + place + 4] = at_step[: steps - place - 1]
        head.weight[bit, neuron] = 20
    nn.init.constant_(head.bias, -10)
    return rnn, head


def test_an_indrnn_can_copy_as_many_vectors_as_it_has_places_for():
    """Five layers: counting, places, writing, storing, reading; |u| is 0 or 1."""
    rnn, head = copier(places=20)

    def model(inputs):
        return head(rnn(inputs)[0])

    for length in 1, 7, 20:
        assert algorithms.bits(model, [problems.copy(source(), 20, length)]) < 0.02
    assert algorithms.bits(model, [problems.copy(source(), 20, 21)]) > 8


def addressed(memory, before, key, strength, gate, shift, sharpness):
    """One head's weights by a plain loop over the places, as Graves et al. write them."""
    places = range(len(memory))
    lengths = [math.hypot(*vector) for vector in memory]
    cosines = [
        sum(a * b for a, b in zip(vector, key, strict=True)) / length / math.hypot(*key)
        for vector, length in zip(memory, lengths, strict=True)
    ]
    matches = [math.exp(strength * cosine) for cosine in cosines]
    mixed = [
        gate * match / sum(matches) + (1 - gate) * weight
        for match, weight in zip(matches, before, strict=True)
    ]
    moved = [
        sum(share * mixed[(place - by) % len(memory)] for by, share in enumerate(shift, -1))
        for place in places
    ]
    powers = [weight**sharpness for weight in moved]
    return [power / sum(powers) for power in powers]


def test_heads_are_moved_as_the_paper_says():
    draw = source()
    options = {"generator": draw, "dtype": torch.float64}
    memory = torch.randn(3, 7, 4, **options)
    before = torch.rand(3, 2, 7, **options).softmax(-1)
    key, shift = torch.randn(3, 2, 4, **options), torch.randn(3, 2, 3, **options).softmax(-1)
    strength, gate = 3 * torch.rand(3, 2, 1, **options), torch.rand(3, 2, 1, **options)
    sharpness = 1 + torch.rand(3, 2, 1, **options)
    weights = ntm.address(memory, before, key, strength, gate, shift, sharpness)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, dtype=torch.float64))
    for row in range(3):
        for head in range(2):
            numbers = [each[row, head].tolist() for each in (before, key)]
            scalars = [each[row, head].item() for each in (strength, gate)]
            last = shift[row, head].tolist(), sharpness[row, head].item()
            expected = addressed(memory[row].tolist(), *numbers, *scalars, *last)
            assert weights[row, head].tolist() == pytest.approx(expected, rel=1e-9)


def test_a_place_loses_and_gets_what_its_weight_says():
    memory, weights, erased, added = (
        torch.rand(*sizes, generator=source()) for sizes in [(2, 5, 3), (2, 5), (2, 3), (2, 3)]
    )
    after = ntm.write(memory, weights, erased, added)
    for row, place, k in torch.cartesian_prod(*map(torch.arange, memory.shape)).tolist():
        share = weights[row, place]
        kept = memory[row, place, k] * (1 - share * erased[row, k])
        torch.testing.assert_close(after[row, place, k], kept + share * added[row, k])


def test_a_head_goes_round_the_memory_and_finds_a_vector():
    """A shift by one place leads from the last to the first; a key leads to its vector."""
    memory = torch.eye(6)[None]
    before = torch.eye(6)[None, :1].flip(-1)
    forward, none = torch.tensor([[[0.0, 0.0, 1.0]]]), torch.tensor([[[0.0, 1.0, 0.0]]])
    off, on, strong = torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.full((1, 1, 1), 50.0)
    key = memory[:, 2:3]
    for arguments, place in (((off, forward), 0), ((on, none), 2)):
        gate, shift = arguments
        weights = ntm.address(memory, before, key, strong, gate, shift, on)
        assert weights[0, 0, place] == pytest.approx(1)


def test_the_machine_reads_what_it_has_written_and_goes_on_from_its_state():
    torch.manual_seed(0)
    machine, x = ntm.NeuralTuringMachine(5, 12), torch.randn(2, 9, 5)
    whole, last = machine(x)
    assert whole.shape == (2, 9, machine.output_size)
    begun, state = machine(x[:, :4])
    rest, end = machine(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([begun, rest], 1), whole)
    for one, other in zip(end, last, strict=True):
        torch.testing.assert_close(one, other)
    *_, memory, weights, found = last
    torch.testing.assert_close(found, (weights[:, 1, :, None] * memory).sum(1))
    whole.square().sum().backward()
    for name, parameter in machine.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_machine_is_a_network_of_this_task():
    task = made(model=["ntm"], parameters=30_000, growing=0, batch=2)
    (learner,) = task.learners
    assert learner.name == "ntm 1 x 64"
    assert abs(learner.parameters - 30_000) < 3_000
    assert 0 < task.loss_of_step(learner, 0)["loss"].item() < 2
