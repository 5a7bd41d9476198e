"""Train networks to tell nine speakers apart by how they say two vowels: JapaneseVowels.

270 utterances to train on and 370 to test, of 7 to 29 time steps with 12 numbers each (Kudo et al.
1999); sktime and aeon ship them. A batch is padded to its longest utterance, and the networks get
the lengths. Each of the 12 channels is brought to mean 0 and variance 1 by the training utterances.
The figure is the share of test utterances given to the right speaker, when the training has ended.
The set is small: one utterance is 0.27 %, so several seeds say more than one.
"""

from typing import ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from bench.tasks import data, series
from fastindrnn import recurrent_max_for


class Vowels(series.Classification):
    title = "Speakers by a vowel, JapaneseVowels"
    data_label = "its own training and test parts"
    SETTINGS: ClassVar = series.Classification.SETTINGS | {
        "model": (["residual", "lstm", "gru"], *series.Classification.SETTINGS["model"][1:]),
        "parameters": (70_000, *series.Classification.SETTINGS["parameters"][1:]),
        "epochs": (40, *series.Classification.SETTINGS["epochs"][1:]),
        "lr": (2e-3, *series.Classification.SETTINGS["lr"][1:]),
        "dropout": (0.3, *series.Classification.SETTINGS["dropout"][1:]),
    }
    network = series.Classifier

    def load(self):
        found = {}
        for part in ("train", "test"):
            name = f"JapaneseVowels_{part.upper()}.ts"
            found[part] = series.load(data.find_shipped(self.settings, "JapaneseVowels", name))
        words = sorted({*found["train"][1], *found["test"][1]})
        values = torch.cat(found["train"][0])
        mean, scale = values.mean(0), values.std(0)
        device = self.settings["device"]
        self.series, self.lengths, labels, hashes = {}, {}, {}, {}
        for part, (utterances, names, digest) in found.items():
            scaled = [(each - mean) / scale for each in utterances]
            self.series[part] = pad_sequence(scaled, batch_first=True).to(device)
            self.lengths[part] = torch.tensor([len(each) for each in utterances], device=device)
            labels[part] = torch.tensor([words.index(name) for name in names], device=device)
            hashes[part] = digest
        self.longest = self.series["train"].shape[1]
        return labels, words, hashes

    def inputs(self, part, chosen, generator):
        lengths = self.lengths[part][chosen]
        return self.series[part][chosen, : lengths.max()], lengths

    def make_model(self, kind, hidden, layers):
        channels, bound = self.series["train"].shape[2], recurrent_max_for(self.longest)
        return self.network(
            kind, channels, hidden, layers, len(self.words), self.settings, recurrent_max=bound
        )


add_arguments, run = Vowels.add_arguments, Vowels.run
