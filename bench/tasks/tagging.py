"""Train part-of-speech taggers on the English Web Treebank: one direction beside both.

A word is read as the sum of learnt vectors: of the word in lower case, of its first 1 to 3 and last
1 to 4 letters, and of its shape (Xx, 9.9). In training some words are left out and known by their
spelling alone. Every network reads the same sum, and every word counts the same in the loss. The
figure is the share of words of the development part that get their tag, with that of the test part
at the end. The rate falls to 0 over --steps or --seconds, whichever ends the training. The default
is short of what taggers reach whose vectors of words come from much more text.
"""

import re
from collections import Counter
from functools import cache, partial
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from bench import arguments
from bench.arguments import UserError
from bench.tasks import data, models
from bench.tasks.run import Task
from fastindrnn import init, recurrent_max_for

SOURCE = (
    "lines of word, tab and tag, and an empty line behind each sentence: columns 2 and 4 of the "
    "files of https://github.com/UniversalDependencies/UD_English-EWT, where column 1 is a number"
)
PARTS = {"train": "ewt-train.tsv", "validation": "ewt-dev.tsv", "test": "ewt-test.tsv"}
BOTH = "bi-"  # before a kind: it reads in both directions
NETWORKS = *models.KINDS, *(BOTH + kind for kind in models.KINDS if kind != "mingru")
LAYERS = {"residual": 2, "dense": None, "lstm": 1, "gru": 1}
EMBEDDING = 64
SEEN = 2  # times in the training part; rarer spellings are not known
NO_TAG = -100  # of padding: cross_entropy leaves it out
EVALUATION_BATCH = 250
SIGNS = {"9": str.isdigit, "X": str.isupper, "x": str.isalpha}  # in the shape of a word


class Tagging(Task):
    title = "Part-of-speech tags, English Web Treebank"
    shown, form, data_label = "accuracy", "{:.1%}", "its own three parts"
    rate_falls = True
    SETTINGS: ClassVar = Task.SETTINGS | {
        "data": data.SETTING,
        "model": (
            ["bi-indrnn", "indrnn", "bi-lstm"],
            arguments.several(NETWORKS),
            f"some of {', '.join(models.KINDS)}; {BOTH} before it: in both directions",
        ),
        "layers": (None, arguments.integer(1), "of each network (default: 2, of lstm and gru 1)"),
        "parameters": (1_600_000, *Task.SETTINGS["parameters"][1:]),
        "steps": (100_000, *Task.SETTINGS["steps"][1:]),
        "seconds": (120.0, *Task.SETTINGS["seconds"][1:]),
        "evaluate-every": (500, *Task.SETTINGS["evaluate-every"][1:]),
        "lr": (1e-2, *Task.SETTINGS["lr"][1:]),
        "dropout": (0.3, arguments.probability, "of the inputs and the outputs of the network"),
        "word-dropout": (0.2, arguments.probability, "of words, which leaves their spelling"),
    }

    def prepare(self):
        parts = {part: read(data.find(self.settings, name, SOURCE)) for part, name in PARTS.items()}
        counts = Counter(
            s for words, _ in parts["train"] for word in words for s in spellings(word)
        )
        known = [spelling for spelling, count in counts.items() if count >= SEEN]
        self.numbers = {spelling: number for number, spelling in enumerate(known, start=1)}
        self.tags = sorted({tag for _, tags in parts["train"] for tag in tags})
        self.parts = {part: self.encode(sentences) for part, sentences in parts.items()}
        lengths = torch.tensor([len(tags) for _, tags in self.parts["train"]])
        self.longest, self.mean_length = lengths.max().item(), lengths.float().mean().item()
        self.shuffled = data.Shuffled(len(lengths), self.settings, lengths)

    def encode(self, sentences):
        """[(numbers of the spellings of each word (T, 9), 0 for an unknown one; tags (T,))]."""
        tags = {tag: number for number, tag in enumerate(self.tags)}
        return [
            (
                torch.tensor([[self.numbers.get(s, 0) for s in spellings(word)] for word in words]),
                torch.tensor([tags.get(tag, len(tags)) for tag in found]),
            )
            for words, found in sentences
        ]

    def layers_of(self, kind):
        return self.settings["layers"] or LAYERS.get(kind.removeprefix(BOTH), 2)

    def make_model(self, kind, hidden, layers):
        sizes = len(self.numbers), hidden, layers, len(self.tags)
        return Tagger(kind, *sizes, self.longest, self.settings)

    def batch(self, sentences):
        """Numbers of spellings (B, T, 9), tags (B, T) and lengths (B,), padded."""
        numbers, tags = zip(*sentences, strict=True)
        lengths = torch.tensor([len(each) for each in tags])
        numbers = pad_sequence(numbers, batch_first=True)
        tags = pad_sequence(tags, batch_first=True, padding_value=NO_TAG)
        return [tensor.to(self.settings["device"]) for tensor in (numbers, tags, lengths)]

    def loss_of_step(self, learner, step):
        sentences = [self.parts["train"][index] for index in self.shuffled(step).tolist()]
        numbers, tags, lengths = self.batch(sentences)
        logits = learner.model(numbers, lengths)
        # Not the mean over the words of the step, or those of short sentences would count more.
        words = self.settings["batch"] * self.mean_length
        total = cross_entropy(logits.flatten(0, 1), tags.flatten(), reduction="sum")
        return {"loss": total / words}

    def evaluate(self, model):
        return {self.shown: self.accuracy(model, "validation")}

    def accuracy(self, model, part):
        """The share of words that get their tag, by a model in evaluation."""
        sentences, right = sorted(self.parts[part], key=lambda sentence: len(sentence[1])), 0
        for first in range(0, len(sentences), EVALUATION_BATCH):
            numbers, tags, lengths = self.batch(sentences[first : first + EVALUATION_BATCH])
            right += (model(numbers, lengths).argmax(-1) == tags).sum().item()
        return right / sum(len(tags) for _, tags in sentences)

    def finish(self, model):
        return {"test": {self.shown: self.accuracy(model, "test")}}


class Tagger(nn.Module):
    """Numbers of spellings (B, T, 9) and lengths (B,) to logits (B, T, tags)."""

    def __init__(self, kind, spellings, hidden, layers, tags, longest, settings):
        super().__init__()
        is_both, kind = kind.startswith(BOTH), kind.removeprefix(BOTH)
        ours = {}
        if kind in models.OURS:
            ours = {
                "norm": "layer",  # the sentences of one batch are alike: no sample of all
                "recurrent_max": recurrent_max_for(longest),
                "recurrent_init": partial(init.uniform_, low=-0.5, high=0.5),  # near words first
            }
        self.embedding = nn.EmbeddingBag(1 + spellings, EMBEDDING, mode="sum", padding_idx=0)
        self.recurrent = models.make(kind, EMBEDDING, hidden, layers, bidirectional=is_both, **ours)
        self.dropout = nn.Dropout(settings["dropout"])
        self.head = nn.Linear(self.recurrent.output_size, tags)
        self.word_dropout = settings["word_dropout"]
        nn.init.normal_(self.embedding.weight, std=0.3)  # of 9 summed: about 1

    def forward(self, numbers, lengths):
        if self.training:
            is_left_out = torch.rand(numbers.shape[:2], device=numbers.device) < self.word_dropout
            word, spelling = numbers[..., :1], numbers[..., 1:]
            word = word.masked_fill(is_left_out.unsqueeze(-1), 0)
            numbers = torch.cat((word, spelling), -1)
        words = self.embedding(numbers.flatten(0, 1)).unflatten(0, numbers.shape[:2])
        output, _ = self.recurrent(self.dropout(words), lengths=lengths)
        return self.head(self.dropout(output))


def read(path):
    """[(words, tags)] of the sentences of a file."""
    blocks = path.read_text(encoding="utf-8").split("\n\n")
    sentences = []
    for block in blocks:
        lines = [line.split("\t") for line in block.split("\n") if line]
        if any(len(line) != 2 for line in lines):
            raise UserError(f"{path} does not hold {SOURCE}")
        if lines:
            sentences.append(tuple(zip(*lines, strict=True)))
    if not sentences:
        raise UserError(f"{path} holds no sentence")
    return sentences


@cache  # most words come often
def spellings(word):
    """What a word is known by, each with its place: itself in lower case, its first 1 to 3 letters,
    its last 1 to 4, and its shape (Xx for Paris, 9,9 for 10,000)."""
    lower = word.lower()
    first = [lower[:count] for count in (1, 2, 3)]
    last = [lower[-count:] for count in (1, 2, 3, 4)]
    signs = "".join(next((sign for sign, holds in SIGNS.items() if holds(c)), c) for c in word)
    return tuple(enumerate([lower, *first, *last, re.sub(r"(.)\1+", r"\1", signs)]))


add_arguments, run = Tagging.add_arguments, Tagging.run
