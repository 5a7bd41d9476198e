"""Train networks to say of each frame who speaks: JapaneseVowels in place of TIMIT.

Le et al. 2015 (arXiv 1504.00941) set relu networks that start from a hundredth of the identity
beside LSTM in telling the phone of each frame of TIMIT, which nobody may ship. Here the answer for
each of the 7 to 29 frames is the speaker of the utterance, so that their figures are not comparable
with these. The figure is the share of frames of the test utterances that are told wrong.
"""

from typing import ClassVar

import torch

from bench.tasks import series, vowels


class Frames(series.Classifier):
    """Takes x (B, T, inputs) and lengths (B,); gives logits (frames, labels), without the padding,
    one sequence after the other."""

    def forward(self, x, lengths):
        output, _ = self.recurrent(x, lengths=lengths)
        is_frame = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return self.head(self.dropout(output[is_frame]))


class Speech(vowels.Vowels):
    title = "Speaker of each frame, JapaneseVowels in place of TIMIT"
    shown = "frame error"
    SETTINGS: ClassVar = vowels.Vowels.SETTINGS | {
        "model": (["indrnn", "irnn-small", "lstm"], *vowels.Vowels.SETTINGS["model"][1:])
    }
    network = Frames

    def answers(self, part, chosen):
        """The speaker, once for each frame."""
        return self.labels[part][chosen].repeat_interleave(self.lengths[part][chosen])

    @staticmethod
    def figure(right):
        return 1 - right


add_arguments, run = Speech.add_arguments, Speech.run
