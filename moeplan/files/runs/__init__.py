"""Measured things: runs, operation tables, telemetry, results of other tools, and what was learnt from own runs."""
