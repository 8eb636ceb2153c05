"""Reads results of serving benchmarks as other tools write them: one module a format, each a ``FORMAT``.

A file is recognised by content. A reader copies numbers it names, a model's name, a date and versions; prompts,
answers, addresses and keys that such files hold are never looked at.
"""

from __future__ import annotations

from moeplan.files.runs.imports import aiperf, guidellm, inferencex, llmperf, sglang, vllm
from moeplan.files.runs.imports.document import Format

FORMATS: tuple[Format, ...] = (
    sglang.FORMAT,
    vllm.FORMAT,
    aiperf.REQUESTS,
    aiperf.FORMAT,
    guidellm.FORMAT,
    llmperf.FORMAT,
    inferencex.FORMAT,
)
