"""Accuracy of serving predictions beyond the table by group: runs left out, a peer on the same runs, what errs most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moeplan.calibrate.left_out import LeftOut, leave_out
from moeplan.calibrate.runs import group_of
from moeplan.files.catalog.model_data import load_model_error

if TYPE_CHECKING:
    import pandas as pd

    from moeplan.calibrate.serving_runs import RowResult
    from moeplan.files.runs.measured_runs import RunTable

_LEAST_ROWS, _N_WORST = 3, 15
_BY = ("model", "hardware", "engine", "load")


def sections_of(table: RunTable, results: Sequence[RowResult], rows: pd.DataFrame, peer: pd.DataFrame | None) -> str:
    """`serving_sections` of judged runs, with what is learnt when groups, models, hardware or engines are left out."""
    alike = {key: table.frame[key].astype(str).tolist() for key in ("model", "hardware", "engine")}
    groups = [group_of(table.kind, row) for row in table.frame.to_dict("records")]
    left_out = leave_out(results, groups, {"group": groups, **alike}, load_model_error())
    return serving_sections(rows, left_out, peer)


def serving_sections(rows: pd.DataFrame, left_out: Sequence[LeftOut], peer: pd.DataFrame | None) -> str:
    """Markdown sections; ``rows`` as ``--out`` writes them, ``peer`` with run_id, peer_ttft_ms and peer_tpot_ms."""
    return "\n".join([*_left_out_lines(left_out), *_peer_lines(rows, peer), *_worst_lines(rows)]) + "\n"


def _left_out_lines(left_out: Sequence[LeftOut]) -> list[str]:
    lines = [
        "",
        "## Runs that nothing was learnt from",
        "",
        "Intervals learnt without every run of the same group (model, hardware, engine), model, hardware or engine:",
        "the learnt error alone, without the queueing simulated at its ends. Operation costs were fitted to no run.",
        "",
        "| metric | left out | rows | MdAPE | bias | coverage | width |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for one in left_out:
        numbers = (one.mdape_frac, one.bias_frac, one.coverage_frac, one.median_width_frac)
        cells = [one.metric, one.left_out, str(one.n), *(_percent(x) for x in numbers)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _peer_lines(rows: pd.DataFrame, peer: pd.DataFrame | None) -> list[str]:
    if peer is None:
        return []
    both = rows.merge(peer, on="run_id")
    lines = ["", f"## Against {peer['peer'].iloc[0]} on the {len(both)} runs it answers", ""]
    lines += ["| metric | peer MdAPE | peer MAPE | peer bias | MdAPE | MAPE | bias |", "|---|" + "---:|" * 6]
    for metric in ("tpot", "ttft"):
        truth = both[f"{metric}_measured"]
        cells = [metric]
        for predicted in (both[f"peer_{metric}_ms"], both[f"{metric}_predicted"]):
            error = (predicted / truth - 1.0).dropna()
            cells += [_percent(x) for x in (error.abs().median(), error.abs().mean(), error.median())]
        lines.append("| " + " | ".join(cells) + " |")
    n_closed = int((rows["load"] == "closed_loop").sum())
    return [*lines, "", f"It answers {len(both)} of the {n_closed} closed-loop runs; moeplan answers all of them."]


def _worst_lines(rows: pd.DataFrame) -> list[str]:
    lines = [
        "",
        "## Groups with the largest errors",
        "",
        f"At least {_LEAST_ROWS} runs; likely causes: `../method/serving.md`.",
    ]
    lines += [
        "",
        "| metric | " + " | ".join(_BY) + " | rows | median error |",
        "|---|" + "---|" * len(_BY) + "---:|---:|",
    ]
    for metric in ("tpot", "output_throughput"):
        error = rows[f"{metric}_predicted"] / rows[f"{metric}_measured"] - 1.0
        table = rows.assign(error=error).dropna(subset=["error"]).groupby(list(_BY))["error"].agg(["size", "median"])
        table = table[table["size"] >= _LEAST_ROWS]
        order = np.argsort(-np.abs(np.log1p(table["median"].to_numpy())), kind="stable")[:_N_WORST]
        for by, (n, median) in zip(table.index[order], table.to_numpy()[order], strict=True):
            lines.append("| " + " | ".join([metric, *map(str, by), f"{n:.0f}", _percent(median)]) + " |")
    return lines


def _percent(value: float) -> str:
    return f"{100.0 * value:.1f} %"
