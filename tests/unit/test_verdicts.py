"""Sentences of the verdicts."""

from __future__ import annotations

import re

from moeplan.planner.verdicts import slo_verdicts
from moeplan.spec.plan import Q
from moeplan.spec.workload import Slo

TARGETS = Slo(ttft_s=1.0, tpot_s=0.05, e2e_s=None, percentile=90.0)


def test_single_token_answers_have_no_time_per_output_token_to_miss() -> None:
    ttft, tpot = slo_verdicts(TARGETS, {"ttft": Q(0.1, 0.05, 0.2)}, answered=True)
    assert ttft.ok
    assert tpot.ok
    assert "single token" in tpot.text


def test_a_target_is_missed_when_nothing_was_answered() -> None:
    assert not any(verdict.ok for verdict in slo_verdicts(TARGETS, {}, answered=False))


def test_no_exponents_in_sentences() -> None:
    (ttft, _) = slo_verdicts(TARGETS, {"ttft": Q(279.0, 169.0, 1041.0)}, answered=True)
    assert not ttft.ok
    assert "279 s (90 % sure: 169 s to 1,041 s)" in ttft.text
    assert not re.search(r"\de[+-]", ttft.text)
