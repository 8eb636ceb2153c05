"""Parameter counts and cache sizes against sums worked by hand and against published figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.files.catalog.model_catalog import load_model, model_names
from moeplan.files.catalog.models.reader import read_model
from moeplan.spec.kv import cache_growth, kv_bytes_per_sequence, kv_bytes_per_token, state_bytes_per_sequence
from moeplan.spec.model import LatentAttention, LinearAttention, SoftmaxAttention, StateSpace


def test_mixtral_8x7b_by_hand() -> None:
    h, ffn, vocab = 4096, 14336, 32000
    attention = h * h + 2 * h * 1024 + h * h
    expert = 3 * h * ffn
    layer = attention + 8 * expert + 8 * h + 2 * h
    model = load_model("Mixtral-8x7B")
    assert model.n_params_total == 32 * layer + 2 * vocab * h + h == 46_702_792_704
    assert model.n_params_active == model.n_params_total - 32 * 6 * expert


def test_deepseek_v3_by_hand() -> None:
    h = 7168
    query = h * 1536 + 1536 + 1536 * 128 * (128 + 64)
    key_value = h * (512 + 64) + 512 + 512 * 128 * (128 + 128)
    attention = query + key_value + 128 * 128 * h
    expert = 3 * h * 2048
    dense_layer = attention + 3 * h * 18432 + 2 * h
    moe_layer = attention + 257 * expert + 256 * h + 2 * h
    model = load_model("DeepSeek-V3")
    assert model.n_params_total == 3 * dense_layer + 58 * moe_layer + 2 * 129280 * h + h
    assert model.n_params_mtp == moe_layer + 2 * h * h + 3 * h
    assert model.n_params_active == model.n_params_total - 58 * 248 * expert


def test_qwen3_next_by_hand() -> None:
    h, vocab = 2048, 151936
    k_dim, v_dim = 16 * 128, 32 * 128
    delta_net = h * (2 * k_dim + 2 * v_dim) + h * 64 + (2 * k_dim + v_dim) * 4 + 64 + 128 + v_dim * h
    softmax = h * 16 * 256 * 2 + 2 * h * 2 * 256 + 16 * 256 * h + 2 * 256
    moe = 512 * 3 * h * 512 + 512 * h + 3 * h * 512 + h
    model = load_model("Qwen3-Next-80B-A3B")
    assert model.n_params_total == 36 * delta_net + 12 * softmax + 48 * (moe + 2 * h) + 2 * vocab * h + h


def test_gpt_oss_20b_by_hand() -> None:
    h, ffn = 2880, 2880
    attention = h * 4096 + 4096 + 2 * (h * 512 + 512) + 4096 * h + h + 64
    expert = 3 * h * ffn + 2 * ffn + h
    layer = attention + 32 * expert + 32 * h + 32 + 2 * h
    assert load_model("gpt-oss-20b").n_params_total == 24 * layer + 2 * 201088 * h + h == 20_914_757_184


def test_glm_45_air_published_exact_count() -> None:
    assert load_model("GLM-4.5-Air").n_params_total == 106_852_245_504


@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [
        ("DeepSeek-V3", 61 * 576 * 2),  # 70,272
        ("DeepSeek-V3.2", 61 * (576 * 2 + 128)),  # with 8-bit index keys
        ("Llama-3.1-70B", 327_680),
        ("Llama-3.1-8B", 131_072),
        ("Qwen3-30B-A3B", 98_304),
        ("gpt-oss-20b", 12 * 2 * 8 * 64 * 2),  # the other 12 layers slide
        ("Mistral-7B-v0.1", 0),  # all layers slide
        ("GLM-5.2", 78 * 576 * 2 + 21 * 128),  # 21 layers own an indexer
        ("Qwen3-Next-80B-A3B", 12 * 2 * 2 * 256 * 2),
        ("Kimi-Linear-48B-A3B", None),
        ("Llama-4-Scout", 12 * 2 * 8 * 128 * 2),  # three of four layers are chunked
        ("DeepSeek-V4-Flash", 21 * (2 * 512 + 128) / 4 + 20 * 2 * 512 / 128),
        ("MiMo-V2-Flash", 9 * 4 * (192 + 128) * 2),
        ("Jamba-v0.1", 4 * 2 * 8 * 128 * 2),
        ("Nemotron-3-Nano-30B-A3B", 6 * 2 * 2 * 128 * 2),
    ],
)
def test_cache_bytes_per_token(name: str, n_bytes: float | None) -> None:
    model = load_model(name)
    if n_bytes is None:
        n_full = sum(isinstance(block, LatentAttention) for layer in model.layers for block in layer.blocks)
        n_bytes = n_full * 576 * 2
    assert kv_bytes_per_token(model, 2.0) == n_bytes


def test_windows_bound_the_cache() -> None:
    model = load_model("gpt-oss-20b")
    per_layer = 2 * 8 * 64 * 2.0
    found = kv_bytes_per_sequence(model, np.array([0, 100, 128, 10_000]), 2.0)
    assert found.tolist() == [0.0, 24 * 100 * per_layer, 24 * 128 * per_layer, (12 * 10_000 + 12 * 128) * per_layer]


def test_state_sizes_by_hand() -> None:
    next_state = 36 * (32 * 128 * 128 * 4.0 + 3 * (2 * 2048 + 4096) * 2.0)
    assert state_bytes_per_sequence(load_model("Qwen3-Next-80B-A3B")) == next_state
    jamba = 28 * (8192 * 16 * 4.0 + 3 * 8192 * 2.0)
    assert state_bytes_per_sequence(load_model("Jamba-v0.1")) == jamba
    nano = 23 * (4096 * 128 * 4.0 + 3 * (4096 + 2 * 8 * 128) * 2.0)
    assert state_bytes_per_sequence(load_model("Nemotron-3-Nano-30B-A3B")) == nano
    assert state_bytes_per_sequence(load_model("Llama-3.1-8B")) == 0.0


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("Qwen3-30B-A3B", {"full": 48}),
        ("gpt-oss-120b", {"full": 18, "sliding": 18}),
        ("Llama-4-Maverick", {"full": 12, "chunked": 36}),
        ("Gemma-4-26B-A4B", {"full": 5, "sliding": 25}),
        ("Step-3.7-Flash", {"full": 12, "sliding": 33}),
        ("Qwen3.5-35B-A3B", {"full": 10, "linear": 30}),
        ("MiniMax-Text-01", {"full": 10, "linear": 70}),
        ("Jamba-v0.1", {"full": 4, "ssm": 28}),
        ("Nemotron-3-Nano-30B-A3B", {"full": 6, "ssm": 23}),
        ("DeepSeek-V3", {"latent": 61}),
        ("Kimi-K3", {"latent": 24, "linear": 69}),
        ("LongCat-Flash", {"latent": 56}),
    ],
)
def test_layer_patterns(name: str, kinds: dict[str, int]) -> None:
    found: dict[str, int] = {}
    for layer in load_model(name).layers:
        for block in layer.blocks:
            match block:
                case SoftmaxAttention():
                    kind = block.pattern
                case LatentAttention():
                    kind = "latent"
                case LinearAttention():
                    kind = "linear"
                case StateSpace():
                    kind = "ssm"
                case _:
                    continue
            found[kind] = found.get(kind, 0) + 1
    assert found == kinds


@pytest.mark.parametrize(
    ("name", "n_dense"),
    [("DeepSeek-V3", 3), ("Llama-4-Maverick", 24), ("GLM-4.5", 3), ("Jamba-v0.1", 16), ("Qwen3-30B-A3B", 0)],
)
def test_dense_layers(name: str, n_dense: int) -> None:
    model = load_model(name)
    assert model.n_layers - len(model.moe_blocks) == n_dense


@given(name=st.sampled_from(model_names()), tokens=st.integers(0, 10**7), more=st.integers(0, 10**6))
def test_cache_grows_with_context_and_at_most_by_the_first_rate(name: str, tokens: int, more: int) -> None:
    model = load_model(name)
    blocks = [block for layer in model.layers for block in layer.blocks]
    growths = [cache_growth(block) for block in blocks]
    first_rate = sum(2.0 * (g.per_token + g.per_window_token) + g.index_per_token for g in growths)
    before, after = kv_bytes_per_sequence(model, [tokens, tokens + more], 2.0)
    slack = 1e-9 * after
    assert kv_bytes_per_token(model, 2.0) * more <= after - before + slack
    assert after - before <= first_rate * more + slack


PUBLIC = {  # exact parameter counts of published checkpoints (safetensors metadata on their model pages)
    "llama-2-7b": (
        {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096},
        6_738_415_616,
    ),
    "qwen2.5-7b": (
        {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
         "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 131072,
         "sliding_window": 131072, "max_window_layers": 28, "use_sliding_window": False},
        7_615_616_512,
    ),
    "phi-3-mini-4k": (
        {"model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096,
         "sliding_window": 2047},
        3_821_079_552,
    ),
    "gemma-2-9b": (
        {"model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256000,
         "max_position_embeddings": 8192, "sliding_window": 4096},
        9_241_705_984,
    ),
    "mistral-nemo": (
        {"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14336, "num_hidden_layers": 40,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
         "max_position_embeddings": 1024000, "sliding_window": None},
        12_247_782_400,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_models_outside_the_catalog(name: str) -> None:
    config, n_params = PUBLIC[name]
    assert read_model(config, "config.json", name).n_params_total == n_params


@pytest.mark.parametrize(
    ("name", "n_params"),  # safetensors metadata of the published checkpoints
    [
        ("DBRX", 131_596_523_520),
        ("DeepSeek-V2", 235_741_434_880),
        ("DeepSeek-V2-Lite", 15_706_484_224),
        ("Jamba-v0.1", 51_570_323_328),
        ("Llama-3.1-405B", 405_853_388_800),
        ("Mixtral-8x22B", 140_620_634_112),
        ("OLMoE-1B-7B", 6_919_161_856),
        ("Qwen1.5-MoE-A2.7B", 14_315_784_192),
        ("Qwen3-235B-A22B", 235_093_634_560),
        ("Qwen3-30B-A3B", 30_532_122_624),
        ("Qwen3-Next-80B-A3B", 79_674_391_296),
        ("gpt-oss-120b", 116_829_156_672),
    ],
)
def test_published_exact_counts(name: str, n_params: int) -> None:
    assert load_model(name).n_params_total == n_params
