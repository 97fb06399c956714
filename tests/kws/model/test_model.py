"""The recognizer: shapes, size, and the baseline against PyTorch's own Transformer."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from kws.model.network import AudioTransformer
from kws.recipe import RECIPES, FeatureConfig, ModelConfig
from research.frontier import multiplications

BASELINE = RECIPES["baseline"]
SMALL = ModelConfig(num_layers=2, num_heads=2, width=32, feedforward=64)


def build(config: ModelConfig, features: FeatureConfig | None = None, num_words: int = 35) -> AudioTransformer:
    torch.manual_seed(0)
    return AudioTransformer(config, features or FeatureConfig(), num_words)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("stem", "frames_per_token"), [("none", 1), ("conv", 1), ("conv", 2), ("conv", 3), ("conv", 4), ("conv", 6)]
)
def test_features_of_clips_become_a_score_for_every_word(stem: str, frames_per_token: int) -> None:
    width = 128 if stem == "none" else 32
    model = build(dataclasses.replace(SMALL, stem=stem, frames_per_token=frames_per_token, width=width), num_words=7)
    assert model(torch.randn(3, 128, 81)).shape == (3, 7)
    assert model.eval()(torch.randn(1, 128, 81)).shape == (1, 7)


@pytest.mark.parametrize("preset", sorted(RECIPES))
def test_presets_score_35_words_with_finite_numbers(preset: str) -> None:
    model = build(RECIPES[preset].model, RECIPES[preset].features).eval()
    scores = model(torch.rand(2, RECIPES[preset].features.num_mels, 81))
    assert scores.shape == (2, 35)
    assert scores.isfinite().all()


def test_baseline_has_2376611_parameters() -> None:
    assert num_parameters(build(BASELINE.model, BASELINE.features)) == 2_376_611


def test_default_has_at_most_1300000_parameters() -> None:
    default = RECIPES["default"]
    assert num_parameters(build(default.model, default.features)) <= 1_300_000


def test_multiplications_are_those_of_products_and_convolutions_counted_by_hand() -> None:
    features = FeatureConfig(num_mels=32)
    config = dataclasses.replace(SMALL, num_layers=1, stem_channels=(2, 3, 4, 5))
    found = multiplications(build(config, features, num_words=7), features)
    stem = 9 * (1 * 2 * 16 * 41 + 2 * 3 * 8 * 21 + 3 * 4 * 4 * 21 + 4 * 5 * 2 * 21)
    block = 21 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 21 * 21 * 32
    assert found == stem + 21 * (2 * 5) * 32 + block + 32 * 7


def test_small_has_150000_parameters_and_10_million_multiplications_at_most_and_hears_the_defaults_features() -> None:
    small, default = RECIPES["small"], RECIPES["default"]
    model = build(small.model, small.features)
    assert num_parameters(model) <= 150_000
    assert multiplications(model, small.features) <= 10_000_000
    assert small.features == default.features


def test_mel_bins_that_cannot_be_pooled_are_refused() -> None:
    with pytest.raises(ValueError, match=r"stem_pool must divide num_mels \(128\), got 3"):
        build(ModelConfig(stem_pool=3))
    with pytest.raises(ValueError, match=r"stem_channels must be positive, got \(16, 0, 64, 96\)"):
        ModelConfig(stem_channels=(16, 0, 64, 96))


class Reference(nn.Module):
    """What the project started from, out of PyTorch's parts."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(d_model=128, nhead=4, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4)
        self.head = nn.Linear(128, 35)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(features.transpose(1, 2)).mean(dim=1))
        return scores


def copy_weights(reference: Reference, model: AudioTransformer) -> None:
    for layer, block in zip(reference.encoder.layers, model.blocks, strict=True):
        pairs = [
            (layer.self_attn.out_proj, block.attention.out),
            (layer.linear1, block.feedforward.expand),
            (layer.linear2, block.feedforward.contract),
            (layer.norm1, block.norm1),
            (layer.norm2, block.norm2),
        ]
        for source, target in pairs:
            target.load_state_dict(source.state_dict())
        block.attention.qkv.load_state_dict(
            {"weight": layer.self_attn.in_proj_weight, "bias": layer.self_attn.in_proj_bias}
        )
    model.head.load_state_dict(reference.head.state_dict())


def test_baseline_equals_pytorchs_transformer_encoder_with_the_same_weights() -> None:
    torch.manual_seed(0)
    reference, model = Reference(), build(BASELINE.model, BASELINE.features)
    assert num_parameters(reference) == num_parameters(model)
    copy_weights(reference, model)
    features = torch.randn(5, 128, 81)
    reference.eval()
    model.eval()
    torch.testing.assert_close(model(features), reference(features), atol=1e-5, rtol=0)


def test_baseline_and_pytorchs_transformer_encoder_have_the_same_gradients() -> None:
    config = dataclasses.replace(BASELINE.model, dropout=0.0)
    torch.manual_seed(0)
    reference, model = Reference(), build(config, BASELINE.features)
    copy_weights(reference, model)
    for module in reference.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    features, labels = torch.randn(3, 128, 81).double(), torch.tensor([3, 1, 30])
    for each in (reference.double(), model.double()):
        nn.functional.cross_entropy(each(features), labels).backward()
    for layer, block in zip(reference.encoder.layers, model.blocks, strict=True):
        torch.testing.assert_close(block.attention.qkv.weight.grad, layer.self_attn.in_proj_weight.grad)
        torch.testing.assert_close(block.feedforward.expand.weight.grad, layer.linear1.weight.grad)


def test_baseline_starts_from_the_weights_that_pytorch_draws() -> None:
    reference, model = Reference(), build(BASELINE.model, BASELINE.features)
    for layer, block in zip(reference.encoder.layers, model.blocks, strict=True):
        drawn, ours = layer.self_attn.in_proj_weight.detach(), block.attention.qkv.weight.detach()
        assert float(ours.std()) == pytest.approx(float(drawn.std()), rel=0.02)
        assert float(ours.abs().max()) == pytest.approx(float(drawn.abs().max()), rel=0.02)
        assert not block.attention.qkv.bias.any()
        assert not block.attention.out.bias.any()


@pytest.mark.parametrize("positions", [False, True])
def test_order_of_frames_counts_only_with_positions(positions: bool) -> None:
    config = dataclasses.replace(SMALL, stem="none", frames_per_token=1, width=128, positions=positions)
    model = build(config).eval()
    features = torch.randn(4, 128, 81)
    shuffled = features[:, :, torch.randperm(81)]
    same = torch.allclose(model(features), model(shuffled), atol=1e-5)
    assert same != positions


@pytest.mark.parametrize("preset", sorted(RECIPES))
def test_gradient_of_one_batch_reaches_every_parameter(preset: str) -> None:
    model = build(RECIPES[preset].model, RECIPES[preset].features)
    torch.manual_seed(0)
    scores = model(torch.randn(4, RECIPES[preset].features.num_mels, 81))
    scores = scores if scores.ndim == 2 else scores.mean(dim=1)  # of tokens, while in training
    nn.functional.cross_entropy(scores, torch.tensor([0, 1, 2, 34])).backward()
    unreached = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert unreached == []


def test_normalization_is_part_of_the_model_and_of_its_weights() -> None:
    plain, model = build(SMALL).eval(), build(SMALL).eval()
    mean, std = torch.linspace(-9, -2, 128), torch.linspace(1, 3, 128)
    model.set_normalization(mean, std)
    features = torch.randn(2, 128, 81)
    torch.testing.assert_close(model(features * std[:, None] + mean[:, None]), plain(features), atol=1e-4, rtol=0)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain.mean, mean)
    assert torch.equal(plain.std, std)


def test_scores_of_a_clip_do_not_depend_on_other_clips_of_the_batch() -> None:
    model = build(SMALL).eval()
    features = torch.randn(5, 128, 81)
    alone = torch.cat([model(clip[None]) for clip in features])
    torch.testing.assert_close(model(features), alone, atol=1e-5, rtol=0)


def test_dropout_and_drop_path_act_in_training_only() -> None:
    model = build(dataclasses.replace(SMALL, dropout=0.2, drop_path=0.5))
    features = torch.randn(4, 128, 81)
    assert not torch.equal(model(features), model(features))
    model.eval()
    assert torch.equal(model(features), model(features))


def test_drop_path_keeps_the_mean() -> None:
    model = build(dataclasses.replace(SMALL, num_layers=1, drop_path=0.0))
    block = model.blocks[0]
    block.drop_path = 0.5  # type: ignore[assignment]
    tokens = torch.randn(1, 9, 32)
    branch = nn.Linear(32, 32)
    many = tokens.expand(20_000, -1, -1)
    block.train()
    mean = block._residual(many, nn.Identity(), branch).mean(dim=0)
    torch.testing.assert_close(mean, (tokens + branch(tokens))[0], atol=0.05, rtol=0)


def test_frames_as_tokens_need_as_many_mel_bins_as_channels() -> None:
    with pytest.raises(ValueError, match=r"width must equal num_mels \(128\) if stem is none, got 64"):
        build(ModelConfig(stem="none", frames_per_token=1, width=64))


def test_probabilities_of_other_words_add_up_to_that_of_unknown_words() -> None:
    features = RECIPES["streams"].features
    config = dataclasses.replace(RECIPES["streams"].model, num_layers=1, drop_path=0.0, other_words=3)
    model, clips = build(config, features, num_words=4), torch.randn(2, features.num_mels, 81)
    apart = model.train()(clips).softmax(-1)
    assert apart.shape == (2, 21, 7)
    together = model.eval().token_scores(clips).softmax(-1)
    torch.testing.assert_close(together[..., [0, 1, 3]], apart[..., [0, 1, 3]])
    torch.testing.assert_close(together[..., 2], apart[..., [2, 4, 5, 6]].sum(-1))
    assert model(clips).shape == (2, 4)
