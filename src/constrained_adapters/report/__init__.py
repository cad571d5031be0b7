"""One self-contained HTML page about a run: tables, figures, samples. Reads results only; no torch."""

from constrained_adapters.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
