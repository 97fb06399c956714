"""The network: a Transformer over the frames of a mel spectrogram, which scores clips or every place in a stream.

Letters in shapes:
    N  clips in a batch
    F  mel bins (128)
    T  frames (81)
    L  tokens: T / frames_per_token, rounded up
    C  channels per token (width)
    H  attention heads
    D  channels per head, C / H
    K  words
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kws.recipe import FeatureConfig, ModelConfig


class AudioTransformer(nn.Module):
    """Maps the features of clips to a score for every word.

    features [N, F, T] → normalize → stem → tokens [N, L, C] → + positions → blocks → mean over tokens → scores [N, K]

    If the configuration says that tokens get scores, nothing in the network depends on the length of its input or on
    where a token is in it: a token attends to its neighbours only, and positions are relative to it. `token_scores` is
    then what it is trained on. Each token scores the word whose middle it is at, and a clip gets the scores of the
    token at which most is said.

    The `baseline` preset (no stem, no positions, post-norm, feed-forward 2048, dropout 0.1) is equivalent to
    `nn.TransformerEncoder` with `nn.TransformerEncoderLayer(128, 4, batch_first=True)`, and has the same weights.
    """

    def __init__(self, config: ModelConfig, features: FeatureConfig, num_words: int) -> None:
        super().__init__()
        self.config = config
        num_tokens = math.ceil(features.num_frames / config.frames_per_token)
        self.register_buffer("mean", torch.zeros(features.num_mels))
        self.register_buffer("std", torch.ones(features.num_mels))
        self.stem = ConvStem(config, features) if config.stem == "conv" else FramesAsTokens(config, features)
        self.positions = nn.Parameter(torch.zeros(num_tokens, config.width)) if config.positions else None
        drop_path = torch.linspace(0, config.drop_path, config.num_layers, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(config, rate) for rate in drop_path)
        self.norm = nn.LayerNorm(config.width) if config.norm_first else nn.Identity()
        self.num_words = num_words
        self.head = nn.Linear(config.width, num_words + config.other_words)
        # On the device meta this would import torch.compile, which takes 80 MB and two seconds.
        if self.positions is not None and not self.positions.is_meta:
            nn.init.trunc_normal_(self.positions, std=0.02)

    mean: Tensor
    std: Tensor

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Sets mean and standard deviation of every mel bin, each [F]."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, features: Tensor) -> Tensor:
        """Scores words.

        Args:
            features: float [N, F, T], as computed by `kws.preprocess.features.MelSpectrogram`.

        Returns:
            Scores (logits), float [N, K]; while a model of tokens is in training, float [N, L, K + other_words].
        """
        if self.config.scores == "tokens":
            scores: Tensor = self.head(self._tokens(features))
            return scores if self.training else self.loudest(self._added_up(scores))
        clip_scores: Tensor = self.head(self._tokens(features).mean(dim=1))
        return clip_scores

    def token_scores(self, features: Tensor) -> Tensor:
        """Scores the words at every token: float [N, F, T] of any T to float [N, L, K].

        The scores of a token are exact if all frames to which it reaches are there, see `margin`.
        """
        return self._added_up(self.head(self._tokens(features)))

    def _added_up(self, scores: Tensor) -> Tensor:
        """Adds the probabilities of the other words to that of unknown words: [N, L, K + other_words] to [N, L, K]."""
        if not self.config.other_words:
            return scores
        end = self.num_words
        unknown = torch.cat((scores[..., end - 2 : end - 1], scores[..., end:]), dim=-1)
        return torch.cat((scores[..., : end - 2], unknown.logsumexp(-1, keepdim=True), scores[..., end - 1 : end]), -1)

    @staticmethod
    def loudest(scores: Tensor) -> Tensor:
        """Chooses the token at which silence, the last class, is least likely: [N, L, K] to [N, K]."""
        place = scores.log_softmax(-1)[:, :, -1:].argmin(dim=1, keepdim=True)  # [N, 1, 1]
        return scores.gather(1, place.expand(-1, 1, scores.size(2)))[:, 0]

    @property
    def margin(self) -> tuple[int, int]:
        """The numbers of tokens before and after a token on which its scores depend."""
        assert isinstance(self.stem, ConvStem)
        before, after = (self.config.num_layers * reach + self.stem.reach for reach in self.config.reach)
        return before, after

    def _tokens(self, features: Tensor) -> Tensor:
        x = (features - self.mean[:, None]) / self.std[:, None]
        x = self.stem(x)  # [N, L, C]
        if self.positions is not None:
            x = x + self.positions
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class FramesAsTokens(nn.Module):
    """The stem `none`: each frame of F mel bins is a token of C = F channels."""

    def __init__(self, config: ModelConfig, features: FeatureConfig) -> None:
        super().__init__()
        if config.width != features.num_mels:
            raise ValueError(f"width must equal num_mels ({features.num_mels}) if stem is none, got {config.width}")

    def forward(self, x: Tensor) -> Tensor:
        """Transposes [N, F, T] to [N, T, F]."""
        return x.transpose(1, 2)


class ConvStem(nn.Module):
    """Four 3 × 3 convolutions over mel bins and frames, then a projection of the remaining mel bins and channels.

    Each halves the mel axis; together they shorten the time axis by `frames_per_token`, the first ones by two.
    Convolutions find a pattern at any pitch, which matters with few clips.
    """

    def __init__(self, config: ModelConfig, features: FeatureConfig) -> None:
        super().__init__()
        convs, last, frames = [], 1, config.frames_per_token
        step, reach = 1, 0  # frames from one result of a convolution to the next, and beside it that it depends on
        for number, channels in enumerate(config.stem_channels, 1):
            stride = 2 if frames % 2 == 0 and number < len(config.stem_channels) else frames
            convs.append(nn.Conv2d(last, channels, 3, stride=(2, stride), padding=1))
            last, frames = channels, frames // stride
            step, reach = step * stride, reach + step
        # The memory format of the weights determines that of all activations, and with it the speed of the stem, which
        # on the CPU takes two thirds of the time.
        self.convs = nn.ModuleList(convs).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.reach = math.ceil(reach / config.frames_per_token)
        """Tokens before and after itself on whose frames a token depends."""
        self.pool = config.stem_pool
        self.activation = F.silu if config.stem_activation == "silu" else F.relu
        if features.num_mels % self.pool:
            raise ValueError(f"stem_pool must divide num_mels ({features.num_mels}), got {self.pool}")
        rows = math.ceil(features.num_mels // self.pool / 2 ** len(convs))
        self.project = nn.Linear(last * rows, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, F, T] to tokens [N, L, C]."""
        x = x[:, None]
        if self.pool > 1:
            x = F.avg_pool2d(x, (self.pool, 1))
        x = x.contiguous(memory_format=torch.channels_last)
        for conv in self.convs:
            x = self.activation(conv(x))  # after the last one [N, channels, F / 16, L]
        x = x.permute(0, 3, 2, 1)
        # Not flatten, which onnxruntime cannot compute if there are no clips.
        tokens: Tensor = self.project(x.reshape(x.size(0), x.size(1), self.project.in_features))
        return tokens


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a residual connection."""

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        self.norm_first = config.norm_first
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width)
        self.feedforward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens [N, L, C] to tokens of the same shape."""
        x = self._residual(x, self.norm1, self.attention)
        return self._residual(x, self.norm2, self.feedforward)

    def _residual(self, x: Tensor, norm: nn.Module, branch: nn.Module) -> Tensor:
        if not self.norm_first:
            normed: Tensor = norm(x + self.dropout(branch(x)))
            return normed
        y: Tensor = self.dropout(branch(norm(x)))
        if self.training and self.drop_path > 0:
            # Some clips skip the branch; the others are scaled to keep the mean.
            keep = 1 - self.drop_path
            y = y * y.new_empty(len(y), 1, 1).bernoulli_(keep).div_(keep)
        return x + y


class Attention(nn.Module):
    """Multi-head self-attention; one product computes queries, keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.reach = config.reach if config.scores == "tokens" else None
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        # What the distance of two tokens adds to the attention of each head.
        self.distances = nn.Parameter(torch.zeros(config.num_heads, sum(config.reach) + 1)) if self.reach else None
        # Initialized as in nn.MultiheadAttention.
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens [N, L, C] to tokens of the same shape."""
        num_clips, num_tokens = x.size(0), x.size(1)
        width = self.qkv.in_features
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, width // self.num_heads))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each [N, H, L, D]
        dropout = self.dropout if self.training else 0.0
        if x.device.type == "cpu":
            # With so few tokens plain products are faster than the fused kernel, 2 to 10 times including the gradient.
            scores = q * q.size(-1) ** -0.5 @ k.transpose(-1, -2)  # [N, H, L, L]
            weights = (scores if self.reach is None else scores + self._bias(num_tokens)).softmax(-1)
            x = F.dropout(weights, dropout) @ v
        else:
            bias = None if self.reach is None else self._bias(num_tokens).to(q.dtype)
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        tokens: Tensor = self.out(x.transpose(1, 2).reshape(num_clips, num_tokens, width))
        return tokens

    def _bias(self, num_tokens: int) -> Tensor:
        """Returns what is added to the attention from each token to each other, [H, L, L]; out of reach, -10,000."""
        assert self.reach is not None
        assert self.distances is not None
        before, after = self.reach
        place = torch.arange(num_tokens, device=self.distances.device)
        distance = place - place[:, None]  # [L, L]
        bias = self.distances[:, (distance + before).clamp(0, before + after)]
        return bias.masked_fill((distance < -before) | (distance > after), -1e4)


class FeedForward(nn.Module):
    """The feed-forward layer: two linear layers with an activation function between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, config.feedforward)
        self.activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.dropout = nn.Dropout(config.dropout)
        self.contract = nn.Linear(config.feedforward, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens [N, L, C] to tokens of the same shape."""
        tokens: Tensor = self.contract(self.dropout(self.activation(self.expand(x))))
        return tokens
