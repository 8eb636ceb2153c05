"""Checked access to the fields of a model configuration, with a record of what was read.

Rule for keys that no reader asked for (so that nothing is guessed and nothing is dropped silently):

1. a key of ``HARMLESS``, a key that starts with ``_``, and a value that says "absent" (null, false, 0, "", [], {})
   cannot change a size: ignored;
2. of a known ``model_type``: an error when the name holds a size word (``SIZE_WORDS``), otherwise a note;
3. of an unknown ``model_type``: always an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from moeplan.errors import InputError, Problem

# Token ids, training and generation settings, and other fields that change neither a matrix nor a cache.
_HARMLESS_WORDS = """
    architectures auto_map transformers_version torch_dtype dtype use_cache cache_implementation initializer_range
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id
    attention_dropout hidden_dropout resid_pdrop emb_pdrop embd_pdrop attn_pdrop dropout expert_dropout
    hidden_act hidden_activation hidden_act_param activation_function mamba_hidden_act rms_norm_eps
    layer_norm_epsilon layer_norm_eps layernorm_epsilon norm_eps norm_epsilon rms_norm_eps_moe_gate
    rope_theta rope_scaling rope_parameters rope_local_base_freq swa_rope_theta compress_rope_theta rotary_dim
    rotary_pct partial_rotary_factor rope_interleave indexer_rope_interleave rope_ratio original_rope rope_type mscale
    original_max_position_embeddings initial_context_length max_sequence_length max_length min_length
    attn_temperature_tuning floor_scale attn_scale attention_multiplier logits_scaling residual_multiplier
    embedding_multiplier query_pre_attn_scalar attn_logit_softcapping final_logit_softcapping clip_qkv
    output_router_logits router_aux_loss_coef aux_loss_alpha router_z_loss_coef seq_aux router_jitter_noise
    input_jitter_noise norm_topk_prob moe_renormalize routed_scaling_factor moe_router_scaling_factor topk_method
    moe_router_dtype moe_jitter_eps moe_loss_weight moe_norm_min moe_gate moe_capacity moe_use_aux_free
    moe_gate_act ep_size pretraining_tp swiglu_limit
    swiglu_alpha attention_value_scale num_logits_to_keep time_step_floor time_step_limit time_step_max time_step_min
    use_mamba_kernels use_mambapy use_associative_scan rescale_prenorm_residual residual_in_fp32 chunk_size
    mamba_ssm_dtype mamba_ssm_cache_dtype moe_shared_expert_overlap index_share_for_mtp_iteration index_topk_freq
    index_skip_topk_offset index_topk_pattern block_size prefill_chunk_size attention_sink_size for_llm_compressor
    layernorm_full_attention_alpha layernorm_full_attention_beta layernorm_linear_attention_alpha
    layernorm_linear_attention_beta layernorm_mlp_alpha layernorm_mlp_beta postnorm full_attn_alpha_factor
    full_attn_beta_factor linear_attn_alpha_factor linear_attn_beta_factor mlp_alpha_factor mlp_beta_factor
    image_token_id video_token_id vision_start_token_id vision_end_token_id vision_config audio_config boi_token_index
    eoi_token_index image_token_index ignore_index output_hidden_states output_attentions return_dict
    chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention bad_words_ids begin_suppress_tokens
    cross_attention_hidden_size diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label label2id
    length_penalty no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores prefix
    problem_type pruned_heads remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torchscript
    typical_p use_bfloat16 name_or_path
    anyres_pooling_size class_num dense_list eod_token_id im_end_id im_newline_id im_start_id mask_init_id
    num_media_embeds org_vocab_size pad_id text_start_id text_end_id use_mixed_mlp_moe use_rotary_pos_emb
    cla_share_factor vit_type vit_patch vit_token vit_input_resolution vit_mapping_type vit_norm_type norm_type
    pool_type video_start_id video_end_id
"""
HARMLESS = frozenset(_HARMLESS_WORDS.split())

SIZE_WORDS = re.compile(
    r"size|dim|rank|head|layer|expert|shared|vocab|hidden|inner|width|ratio|bias|kernel|conv|window|chunk|block"
    r"|freq|pattern|interval|period|step|index|sparse|moe|mlp|ffn|mamba|ssm|state|linear|latent|mtp|nextn|num_|n_|hc_|ple_"
    r"|ngram|adapter|lora|residual|rel_|mult|expand|qk_norm"
)

UNKNOWN_HINT = "this architecture is not fully understood; remove the field only if it changes no weight or cache"

MAX_SIZE = 10**8
MAX_LAYERS = 10**4


class Fields:
    """The keys of one JSON object. Every accessor marks its key as read and reports what is wrong with it.

    A missing or wrong value yields a placeholder so that one reading finds every problem; nothing built from
    placeholders leaves the reader, because ``raise_problems`` is called before the model is returned.
    """

    def __init__(self, values: Mapping[str, Any], file: str, prefix: str = "", problems: list[Problem] | None = None):
        self.values = values
        self.file = file
        self.prefix = prefix
        self.problems: list[Problem] = [] if problems is None else problems
        self.read: set[str] = set()

    def problem(self, key: str, what: str, got: object = None, allowed: str = "", hint: str = "") -> None:
        """Record one problem at ``key``."""
        shown = "" if got is None else repr(got)
        self.problems.append(Problem(self.file, 1, 1, self.prefix + key, what, shown, allowed, hint))

    def has(self, *keys: str) -> bool:
        """Whether any of the keys is there and not null."""
        return any(self.values.get(key) is not None for key in keys)

    def raw(self, *keys: str) -> Any:
        """The first of the keys that is there and not null, unchecked; None when there is none."""
        self.read.update(keys)
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def _named(self, keys: tuple[str, ...]) -> str:
        return next((key for key in keys if self.values.get(key) is not None), keys[0])

    def size(self, *keys: str, default: int | None = None, low: int = 1, high: int = MAX_SIZE) -> int:
        """An integer; several keys are spellings of one field. ``default`` is the family's documented default."""
        value = self.raw(*keys)
        name = self._named(keys)
        if value is None:
            if default is not None:
                return default
            spellings = " or ".join(repr(key) for key in keys)
            self.problem(name, f"missing field {spellings}", hint="the size cannot be guessed; add the field")
            return max(low, 1)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.problem(name, "must be an integer", value, f"{low} to {high}")
            return max(low, 1)
        if (isinstance(value, float) and not value.is_integer()) or not low <= value <= high:
            self.problem(name, "must be an integer in range", value, f"{low} to {high}")
            return max(low, 1)
        for other in keys:
            if self.values.get(other) not in (None, value):
                self.problem(other, f"contradicts {name}, another spelling of it", self.values[other], str(value))
        return int(value)

    def optional_size(self, *keys: str, low: int = 1) -> int | None:
        """An integer, or None when absent or null."""
        return self.size(*keys, low=low) if self.has(*keys) else self.raw(*keys)

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(key, "must be true or false", value, "true, false")
            return default
        return value

    def word(self, key: str, allowed: Sequence[str], default: str) -> str:
        value = self.raw(key)
        if value is None:
            return default
        if value not in allowed:
            self.problem(key, "not understood", value, ", ".join(allowed))
            return default
        return str(value)

    def per_layer(self, key: str, n_layers: int, allowed: Sequence[object]) -> tuple[Any, ...] | None:
        """A list with one of ``allowed`` for each layer; None when absent."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != n_layers:
            got = len(value) if isinstance(value, list) else value
            self.problem(key, f"must be a list of {n_layers} entries, one a layer", got)
            return None
        for i, entry in enumerate(value):
            if not any(type(entry) is type(known) and entry == known for known in allowed):
                self.problem(f"{key}[{i}]", "not understood", entry, ", ".join(map(str, allowed)))
                return None
        return tuple(value)

    def numbers(self, key: str) -> list[int]:
        """A list of integers, empty when absent."""
        value = self.raw(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(type(entry) is int for entry in value):
            self.problem(key, "must be a list of integers", value)
            return []
        return list(value)

    def constant_list(self, key: str, n_layers: int, default: int | None = None) -> int:
        """A size given once, or as a list that repeats it for every layer (Hunyuan)."""
        value = self.values.get(key)
        if not isinstance(value, list):
            return self.size(key, default=default)
        self.read.add(key)
        if len(value) != n_layers or len({repr(v) for v in value}) != 1:
            self.problem(key, f"must repeat one number for all {n_layers} layers", value)
            return 1
        return Fields({key: value[0]}, self.file, self.prefix, self.problems).size(key)

    def off(self, *keys: str) -> None:
        """Features that no reader understands: present and true is an error."""
        for key in keys:
            value = self.raw(key)
            if value not in (None, False, 0):
                self.problem(key, "this feature is not understood", value, "false")

    def section(self, key: str) -> Fields | None:
        """A nested object sharing this one's list of problems; None when absent."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.problem(key, "must be a JSON object", value)
            return None
        return Fields(value, self.file, f"{self.prefix}{key}.", self.problems)

    def finish(self, strict: bool) -> list[str]:
        """Apply the rule of this module to the keys nobody read; returns notes on those that are only remarked."""
        notes = []
        for key, value in self.values.items():
            if key in self.read or key in HARMLESS or key.startswith("_") or value in (None, False, 0, "", [], {}):
                continue
            if strict or SIZE_WORDS.search(key.lower()):
                self.problem(key, "unknown field that may change a size", value, hint=UNKNOWN_HINT)
            else:
                notes.append(f"field {self.prefix}{key} is not used")
        return notes

    def raise_problems(self) -> None:
        """Raise every problem found so far, once each.

        Raises:
            InputError: when there is any.
        """
        if self.problems:
            raise InputError(self.problems)
