"""``moeplan calibrate TABLE.csv``: own runs, published collectives, or (``--relearn``) the shipped intervals."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from moeplan.calibrate.own_runs import OwnUpdate
    from moeplan.calibrate.serving_runs import RowResult


def calibrate_csv(table: Path, out: Path | None, source: str, as_json: bool, *, relearn: bool) -> int:
    """Whichever fit the table is for; the exit code."""
    from moeplan.calibrate.fabric_fit import is_published

    if is_published(table):
        return _fit_fabrics(table, out, source, as_json)
    return (_learn_model_error if relearn else _own_runs)(table, out, source, as_json)


def _own_runs(path: Path, out: Path | None, source: str, as_json: bool) -> int:
    """How far own runs move the predictions for their hardware and engine, and how sure that is."""
    import json
    from dataclasses import asdict
    from datetime import UTC, datetime

    from moeplan.calibrate.own_runs import Spread, own_updates
    from moeplan.cli.progress import progress
    from moeplan.errors import input_error
    from moeplan.files.catalog.model_data import load_model_error
    from moeplan.files.runs.calibration import error_spreads, write_calibration
    from moeplan.files.runs.measured_runs import read_runs

    spreads = {
        m: Spread(*(s[k] for k in ("between", "within", "n_runs", "n_groups"))) for m, s in error_spreads().items()
    }
    with progress("reading") as say:
        found, without = own_updates(read_runs(path), load_model_error(), spreads, say)
    if not found:
        raise input_error(path, "nothing to learn: " + "; ".join(without or ["no runs"]))
    target = out if out is not None else path.with_suffix(".calibration.yaml")
    today = datetime.now(UTC).date().isoformat()
    entries = [{"hardware": x.hardware, "engine": x.engine, "metric": x.metric, **asdict(x.update)} for x in found]
    write_calibration(target, today, f"{source}: {path.name}", entries)
    if as_json:
        click.echo(json.dumps({"written": str(target), "corrections": entries, "without": without}, indent=1))
        return 0
    for one in found:
        click.echo(_sentence(one))
    for text in without:
        click.echo(f"unchanged: {text}")
    click.echo(f"wrote {target}; a scenario uses it with   calibration: {target.name}")
    return 0


_MEANING = {
    "step": "iterations",
    "ttft": "first tokens (beyond what iterations explain)",
    "throughput": "times of a flat-out deployment (beyond what iterations explain)",
    "training_step": "training steps",
}


def _sentence(one: OwnUpdate) -> str:
    """A correction for people; a rate's error is that of its time, turned round."""
    import math

    u = one.update
    what = f"{one.hardware}, {one.engine}, {_MEANING[one.metric]}: {u.n_runs} runs"
    if u.shift == 0.0:
        return f"{what}: left as predicted (they err to both sides, or too little to tell)"
    change = math.expm1(-u.shift if one.metric == "throughput" else u.shift)
    low, high = (math.expm1(end - u.shift) for end in (u.low, u.high))
    return (
        f"{what}: corrected by {change:+.0%}, now sure within {low:+.0%} to {high:+.0%}; "
        f"mean error of your runs, each judged by the others: {u.before:.0%} before, {u.after:.0%} after"
    )


def _write_spreads(results: Sequence[RowResult], groups: Sequence[str], kind: str, source: str, path: Path) -> None:
    """How published errors divide between groups and single runs, for `_own_runs` of others."""
    from dataclasses import asdict

    from moeplan.calibrate.own_runs import learn_spreads
    from moeplan.files.catalog.fitted import write_document
    from moeplan.files.runs.calibration import error_spreads

    fresh = {
        metric: {**{k: round(v, 4) for k, v in asdict(spread).items()}, "source": source}
        for metric, spread in learn_spreads(results, groups, kind).items()
    }
    write_document(path, {**error_spreads(), **fresh})


def _fit_fabrics(published: Path, out: Path | None, source: str, as_json: bool) -> int:
    """What network classes deliver between nodes, from published figures."""
    import json
    from datetime import UTC, datetime

    from moeplan.calibrate.fabric_fit import document, fit_fabrics
    from moeplan.files.catalog.fitted import FABRICS_FILE, write_document
    from moeplan.files.locate import data_folder

    found = document(fit_fabrics(published), source, datetime.now(UTC).date().isoformat())
    target = out if out is not None else data_folder("hardware_profiles") / FABRICS_FILE
    write_document(target, found)
    if as_json:
        click.echo(json.dumps({"written": [str(target)], "fits": found["fits"]}, indent=1))
        return 0
    for fit in found["fits"]:
        values = ", ".join(f"{name} {value:.3g}" for name, value in fit["values"].items())
        click.echo(f"{fit['engine']}: {values}; {fit['heldout']['mdape']:.0%} on libraries and GPUs left out")
    click.echo(f"wrote {target}")
    return 0


def _learn_model_error(runs: Path, out: Path | None, source: str, as_json: bool) -> int:
    """Intervals from measured runs; metrics and tiers without enough of them keep what they had, never narrower."""
    import json
    from datetime import UTC, datetime

    from moeplan.calibrate import model_error
    from moeplan.calibrate.runs import group_of, predict, without
    from moeplan.cli.progress import progress
    from moeplan.files.catalog.model_data import load_model_error, model_error_path, model_error_text
    from moeplan.files.runs.calibration import error_spreads_path
    from moeplan.files.runs.measured_runs import read_runs
    from moeplan.files.runs.run_ledger import ledger_rows, shipped_ledger, write_ledger
    from moeplan.files.write import write_text

    table, left_out = without(read_runs(runs), model_error.ANOMALOUS_SOURCES)
    known = load_model_error()
    with progress("reading") as say:
        results = predict(table, known, say)
    groups = [group_of(table.kind, row) for row in table.frame.to_dict("records")]
    stated = f"{source}: {runs.name}, learnt {datetime.now(UTC).date().isoformat()}"
    learnt, summary = model_error.learn_all(results, groups, known, stated, serving=table.kind == "serving")
    target = out if out is not None else model_error_path()
    write_text(target, model_error_text(learnt))
    spread = error_spreads_path() if out is None else out.with_suffix(".spread.yaml")
    _write_spreads(results, groups, table.kind, stated, spread)
    ledger = shipped_ledger() if out is None else out.with_suffix(".runs.csv")
    write_ledger(ledger, ledger_rows(table.kind, table.frame.to_dict("records"), f"intervals of {table.kind} runs"))
    if as_json:
        click.echo(json.dumps({"written": str(target), "learnt": summary}, indent=1))
    else:
        for line in summary:
            evidence = f"{line['n_runs']} runs of {line['n_groups']} groups"
            click.echo(
                f"{line['metric']} ({line['tier']}, {line['situation']}): {line['low']:+.3f} to {line['high']:+.3f} "
                f"from {evidence}; plain quantiles cover {line['cross_coverage']:.0%} of groups left out, so stretched "
                f"by {line['stretch']:g}"
            )
        for source_part, n in left_out.items():
            if n:
                why = model_error.ANOMALOUS_SOURCES[source_part]
                click.echo(f"nothing learnt from {n} runs of {source_part}: {why}")
        click.echo(f"wrote {target}")
    return 0
