"""Small results in every format `moeplan import` reads, written to the formats' descriptions. All hold a secret."""

from __future__ import annotations

from typing import Any

SECRET = "sk-planted-7f3a"
PROMPT = f"my private prompt {SECRET}"

VLLM: dict[str, Any] = {
    "date": "20260110-101500", "endpoint_type": "openai", "backend": "vllm", "label": None, "api_key": SECRET,
    "model_id": "Qwen/Qwen3-30B-A3B-Instruct-2507", "tokenizer_id": "Qwen/Qwen3-30B-A3B", "num_prompts": 100,
    "request_rate": "inf", "burstiness": 1.0, "max_concurrency": 16, "gpu": SECRET, "duration": 50.0, "completed": 100,
    "failed": 0, "total_input_tokens": 102400, "total_output_tokens": 25600, "request_throughput": 2.0,
    "request_goodput:": None, "output_throughput": 512.0, "total_token_throughput": 2560.0, "mean_ttft_ms": 80.0,
    "median_ttft_ms": 75.0, "std_ttft_ms": 9.0, "p99_ttft_ms": 190.0, "mean_tpot_ms": 12.0, "median_tpot_ms": 11.5,
    "p99_tpot_ms": 20.0, "mean_itl_ms": 12.1, "median_itl_ms": 11.0, "p99_itl_ms": 30.0,
    "generated_texts": [PROMPT], "errors": [""],
}  # fmt: skip

SGLANG: dict[str, Any] = {
    "tag": PROMPT, "backend": "sglang", "dataset_name": "random", "request_rate": 4.0, "max_concurrency": None,
    "random_input_len": 1024, "random_output_len": 512, "random_range_ratio": 0.5, "server_info": {"api_key": SECRET},
    "duration": 25.0, "completed": 100, "total_input_tokens": 76800, "total_output_tokens": 38400,
    "total_output_tokens_retokenized": 38390, "request_throughput": 4.0, "input_throughput": 3072.0,
    "output_throughput": 1536.0, "mean_e2e_latency_ms": 5000.0, "median_e2e_latency_ms": 4800.0, "mean_ttft_ms": 60.0,
    "median_ttft_ms": 55.0, "p99_ttft_ms": 100.0, "mean_tpot_ms": 13.0, "median_tpot_ms": 12.8, "p99_tpot_ms": 15.0,
    "mean_itl_ms": 13.0, "median_itl_ms": 12.5, "p99_itl_ms": 40.0,
}  # fmt: skip


def metric(unit: str, avg: float, **more: float) -> dict[str, Any]:
    return {"unit": unit, "avg": avg, **more}


AIPERF: dict[str, Any] = {
    "schema_version": "1.4", "aiperf_version": "0.13.0",
    "request_latency": metric("sec", 2.5, p50=2.4, p90=3.0, p99=3.5),
    "time_to_first_token": metric("ms", 90.0, p50=85.0, p90=120.0, p99=200.0),
    "inter_token_latency": metric("ns", 9.5e6, p50=9.4e6, p90=1e7, p99=1.2e7),
    "output_token_throughput": metric("tokens/sec", 800.0), "request_count": metric("requests", 200.0),
    "error_request_count": metric("requests", 3.0), "benchmark_duration": metric("sec", 60.0),
    "input_sequence_length": metric("tokens", 1000.0), "output_sequence_length": metric("tokens", 250.0),
    "input_config": {
        "endpoint": {"model_names": ["Qwen/Qwen3-30B-A3B"], "url": f"http://{SECRET}/v1", "api_key": SECRET},
        "loadgen": {"concurrency": 8, "request_rate": None}, "cli_command": PROMPT,
    },
    "start_time": "2026-02-03T10:00:00",
}  # fmt: skip


def aiperf_request(i: int, **changes: Any) -> dict[str, Any]:
    """Request i of a run: starts at i s, first token after 50 + i ms, 100 tokens at 10 ms."""
    start = int((1_000 + i) * 1e9)
    record: dict[str, Any] = {
        "metadata": {
            "x_request_id": SECRET, "benchmark_phase": "profiling", "was_cancelled": False,
            "request_start_ns": start, "request_end_ns": start + int(1.05e9),
        },
        "metrics": {
            "input_sequence_length": {"value": 500, "unit": "tokens"},
            "output_sequence_length": {"value": 100, "unit": "tokens"},
            "time_to_first_token": {"value": 50.0 + i, "unit": "ms"},
            "inter_token_latency": {"value": 10.0, "unit": "ms"},
            "request_latency": {"value": 1050.0, "unit": "ms"},
        },
        "error": None,
    }  # fmt: skip
    record["metadata"] |= changes.pop("metadata", {})
    return record | changes


def spread(mean: float, **percentiles: float) -> dict[str, Any]:
    return {"successful": {"mean": mean, "median": mean, "percentiles": {"p90": mean, "p99": mean} | percentiles}}


GUIDELLM: dict[str, Any] = {
    "metadata": {"version": 1, "guidellm_version": "0.6.1"},
    "args": {"backend_kwargs": {"target": f"http://{SECRET}", "model": "Qwen/Qwen3-30B-A3B", "api_key": SECRET}},
    "benchmarks": [
        {
            "type_": "generative_benchmark", "config": {"strategy": {"type_": "concurrent", "streams": 4}},
            "metrics": {
                "request_totals": {"successful": 40, "errored": 1, "incomplete": 0, "total": 41},
                "request_latency": spread(2.0), "prompt_token_count": spread(512.0),
                "output_token_count": spread(128.0),
                "time_to_first_token_ms": spread(70.0, p001=1.0, p01=2.0), "time_per_output_token_ms": spread(15.6),
                "inter_token_latency_ms": spread(15.2), "output_tokens_per_second": spread(250.0),
            },
            "requests": {"successful": [{"prompt": PROMPT, "output": PROMPT}]},
        },
        {
            "type_": "generative_benchmark", "config": {"strategy": {"type_": "poisson", "rate": 2.5}},
            "metrics": {
                "request_totals": {"successful": 50}, "request_latency": spread(1.9),
                "prompt_token_count": spread(512.0), "output_token_count": spread(128.0),
                "time_to_first_token_ms": spread(72.0), "inter_token_latency_ms": spread(14.0),
                "output_tokens_per_second": spread(310.0),
            },
        },
    ],
}  # fmt: skip

LLMPERF: dict[str, Any] = {
    "version": "2023-08-31", "name": PROMPT, "model": "Qwen/Qwen3-30B-A3B", "mean_input_tokens": 550,
    "stddev_input_tokens": 150, "mean_output_tokens": 150, "num_concurrent_requests": 5,
    "results_ttft_s_mean": 0.2, "results_ttft_s_quantiles_p50": 0.19, "results_ttft_s_quantiles_p90": 0.3,
    "results_ttft_s_quantiles_p99": 0.4, "results_end_to_end_latency_s_mean": 3.2,
    "results_end_to_end_latency_s_quantiles_p50": 3.1, "results_inter_token_latency_s_mean": 0.0212,
    "results_number_input_tokens_mean": 548.0, "results_number_output_tokens_mean": 151.0,
    "results_number_output_tokens_min": "100", "results_num_completed_requests": 60, "results_number_errors": 0,
    "results_mean_output_throughput_token_per_s": 230.0, "timestamp": 1700000000,
}  # fmt: skip

INFERENCEX: dict[str, Any] = {
    "hw": "h200", "conc": 64, "image": "vllm/vllm-openai:v0.11.0", "model": "deepseek-ai/DeepSeek-R1-0528",
    "infmax_model_prefix": "dsr1", "framework": "vllm", "precision": "fp8", "spec_decoding": "none", "disagg": False,
    "isl": 1024, "osl": 1024, "is_multinode": False, "tp": 8, "pp": 1, "ep": 1, "dp_attention": False,
    "tput_per_gpu": 500.0, "output_tput_per_gpu": 250.0, "mean_ttft": 0.5, "median_ttft": 0.45, "p99_ttft": 1.5,
    "mean_tpot": 0.03, "median_tpot": 0.029, "mean_e2el": 31.0, "mean_intvty": 33.3, "router": SECRET,
}  # fmt: skip

INFERENCEX_POOLS: dict[str, Any] = {
    **{key: value for key, value in INFERENCEX.items() if key not in ("tp", "pp", "ep", "dp_attention")},
    "disagg": True, "is_multinode": True, "prefill_tp": 4, "prefill_ep": 4, "prefill_dp_attention": "true",
    "prefill_num_workers": 2, "num_prefill_gpu": 8, "decode_tp": 8, "decode_ep": 8, "decode_dp_attention": "true",
    "decode_num_workers": 1, "num_decode_gpu": 8,
}  # fmt: skip
