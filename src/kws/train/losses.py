"""What a step of training minimizes: for clips, and for the tokens of streams."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kws.recipe import ComposeConfig
from kws.train.compose import IGNORED, NO_WORD


def clip_loss(scores: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Returns the mean cross-entropy of clips, and how many of them are recognized.

    Args:
        scores: float32 [clips, classes].
        labels: int64 [clips].
        label_smoothing: probability mass that is spread over all classes.
    """
    loss = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    return loss, (scores.detach().argmax(-1) == labels).sum().float()


def token_loss(
    scores: Tensor, labels: Tensor, num_words: int, label_smoothing: float, config: ComposeConfig
) -> tuple[Tensor, Tensor]:
    """Returns the loss of the tokens of streams, and the share of the tokens in the middle of a word that are right.

    It is a sum of three means: the cross-entropy of tokens in the middle of a word, or of another word that has a class
    of its own; that of tokens without one, where unknown words and silence are equally right unless the label says
    which; and that of "no word" over the few tokens without a word, or with another word, that most resemble a word, as
    false alarms are made by these alone (online hard example mining, arXiv 1604.03540). Labels are smoothed only in the
    middle of a word: a threshold needs differences between small probabilities elsewhere.

    Args:
        scores: float32 [N, L, classes]: the words, unknown words, silence, and other words with classes of their own.
        labels: int64 [N, L]: a class, NO_WORD or IGNORED.
        num_words: the number of classes without those of other words.
        label_smoothing: probability mass that is spread over all classes.
        config: the weights.
    """
    logs = scores.log_softmax(-1)
    unknown = num_words - 2
    no_word = -logs[..., unknown:].logsumexp(-1)  # [N, L]
    named = -logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    word, other_word = (labels >= 0) & (labels < unknown), labels >= num_words
    none = (labels != IGNORED) & ~word & ~other_word
    smoothed = (1 - label_smoothing) * named - label_smoothing * logs.mean(-1)
    words = _mean(smoothed, word | other_word)
    others = _mean(torch.where(labels == NO_WORD, no_word, named), none)
    # Tokens that do not count sort last; with a fixed number of tokens every shape stays the same.
    no_words = no_word.masked_fill(~(none | other_word), 0.0).flatten()
    hardest = no_words.topk(max(1, round(config.hard_share * labels.numel()))).values
    loss = words + config.negative_weight * others + config.hard_weight * hardest.mean()
    right = (scores.detach().argmax(-1) == labels) & word
    return loss, right.sum() / word.sum().clamp(min=1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
