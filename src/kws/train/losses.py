"""What a step of training minimizes: for clips, and for the tokens of streams."""

import torch
from torch import Tensor
from torch.nn import functional as F

from kws.recipe import ComposeConfig
from kws.train.compose import NO_WORD


def clip_loss(scores: Tensor, labels: Tensor, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """Returns the mean cross-entropy of clips, and how many of them are recognized.

    Args:
        scores: float32 [clips, classes].
        labels: int64 [clips].
        label_smoothing: probability mass that is spread over all classes.
    """
    loss = F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    return loss, (scores.detach().argmax(-1) == labels).sum().float()


def token_loss(scores: Tensor, labels: Tensor, label_smoothing: float, config: ComposeConfig) -> tuple[Tensor, Tensor]:
    """Returns the loss of the tokens of streams, and the share of the tokens in the middle of a word that are right.

    It is a sum of three means: the cross-entropy of tokens in the middle of a word; that of tokens without one, where
    unknown words and silence are equally right unless the label says which; and the second of these over the few
    tokens that most resemble a word, as false alarms are made by these alone (online hard example mining, arXiv
    1604.03540). Labels are smoothed only in the middle of a word: a threshold needs differences between small
    probabilities elsewhere.

    Args:
        scores: float32 [N, L, classes], the last two of which are unknown words and silence.
        labels: int64 [N, L]: a class, NO_WORD or IGNORED.
        label_smoothing: probability mass that is spread over all classes.
        config: the weights.
    """
    logs = scores.log_softmax(-1)
    unknown = scores.size(-1) - 2
    no_word = -logs[..., unknown:].logsumexp(-1)  # [N, L]
    named = -logs.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    word = (labels >= 0) & (labels < unknown)
    other = (labels >= unknown) | (labels == NO_WORD)
    smoothed = (1 - label_smoothing) * named - label_smoothing * logs.mean(-1)
    words = _mean(smoothed, word)
    others = _mean(torch.where(labels == NO_WORD, no_word, named), other)
    # Tokens that are not among the others sort last; with a fixed number of tokens every shape stays the same.
    hardest = no_word.masked_fill(~other, 0.0).flatten().topk(max(1, round(config.hard_share * labels.numel()))).values
    loss = words + config.negative_weight * others + config.hard_weight * hardest.mean()
    right = (scores.detach().argmax(-1) == labels) & word
    return loss, right.sum() / word.sum().clamp(min=1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    return (values * chosen).sum() / chosen.sum().clamp(min=1)
