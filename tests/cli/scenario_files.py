"""Scenario texts the command-line tests change line by line, and a runner that never lets a traceback through."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from moeplan.cli import main

SERVING = """\
name: test
model: Qwen3-30B-A3B
hardware: h100-sxm
gpus: 8
serving:
  engine: {name: vllm, max_model_len: 8192}
  precision: native
  layout: {tp: 1, replicas: 1}
  traffic:
    rate: 4 req/s
    input_tokens: 1024
    output_tokens: 200
  slo: {ttft: 500 ms, tpot: 50 ms}
price: 3.50 USD/h
budget: 3000 USD/month
routing: {zipf: 0.3}
"""

TRAINING = """\
name: test
model: OLMoE-1B-7B
hardware: a100-sxm-80gb
gpus: 8
training:
  method: pretrain
  tokens: 1B tokens
  sequence_length: 4096
  global_batch: 64
  precision: bf16
  layout: {dp: 8, ep: 8}
price: 2 USD/h
budget: {limit: 9000 USD, deadline: 30 d}
"""


def with_line(text: str, number: int, line: str) -> str:
    """``text`` with its line ``number`` (from 1) replaced."""
    lines = text.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


def run(*args: str | Path) -> Result:
    """``moeplan ARGS`` in this process; fails on anything but a clean exit."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result
