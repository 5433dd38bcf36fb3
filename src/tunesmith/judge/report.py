"""report.html: one self-contained page: the curves, the verdict, answers before and after, what was run."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import resources
from typing import Any

import altair
import jinja2
from markupsafe import Markup

from tunesmith.judge.verdict import Judgement
from tunesmith.rundir import RunFolder, write_atomically
from tunesmith.rundir.manifest import Manifest
from tunesmith.rundir.result import RunResult
from tunesmith.rundir.verdict import verdict_sentence
from tunesmith.visible import visible


def write_report(run: RunFolder, *, manifest: Manifest, recipe_text: str, result: RunResult,
                 judgement: Judgement | None) -> None:
    """Write the run's report. Raises DiskError.

    manifest, recipe_text, result: what was run, and what came out.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined,
                                     finalize=_visible_value)
    source = (resources.files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    metrics = run.metrics.read()
    curve, rate = _as_svg(_loss_chart(metrics, judgement),
                          _line_chart(metrics, "learning_rate", "learning rate", 130))
    page = environment.from_string(source).render(
        name=run.path.name, manifest=manifest, recipe=recipe_text, result=result, judgement=judgement,
        verdict=verdict_sentence(judgement.summary().model_dump()) if judgement else "",
        loss_curve=curve, rate_curve=rate, last=metrics[-1] if metrics else {})
    write_atomically(run.report, page)


def _visible_value(value: Any) -> Any:
    """Text of others' making is escaped by autoescape; this shows what it holds besides."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


#: Draws in a process of its own: the library's engine ends the whole process where it gets no memory.
_DRAW = ("import json, sys, vl_convert; "
         "json.dump([vl_convert.vegalite_to_svg(chart) for chart in json.load(sys.stdin)], sys.stdout)")
_DRAW_S = 120.0


def _as_svg(*charts: altair.LayerChart | altair.Chart) -> list[Markup]:
    """The charts as SVG; a sentence instead of each where they could not be drawn."""
    try:
        done = subprocess.run([sys.executable, "-P", "-c", _DRAW],
                              input=json.dumps([chart.to_dict() for chart in charts]), text=True,
                              capture_output=True, timeout=_DRAW_S, check=True, encoding="utf-8")
        return [Markup(svg) for svg in json.loads(done.stdout)]  # made of numbers and of our own words
    except (OSError, subprocess.SubprocessError, ValueError):
        return [Markup("<p>The chart could not be drawn on this machine. metrics.jsonl has its numbers.</p>")
                for _ in charts]


def _loss_chart(metrics: list[dict[str, Any]], judgement: Judgement | None) -> altair.LayerChart:
    points = [{"step": m["step"], "loss": m["loss"], "of": "training"} for m in metrics]
    validation = [{"step": m["step"], "loss": m["eval_loss"], "of": "held out"} for m in metrics
                  if "eval_loss" in m]
    if judgement is not None:
        last = metrics[-1]["step"] if metrics else 0
        validation = [{"step": 0, "loss": judgement.loss_base, "of": "held out"}, *validation,
                      {"step": last, "loss": judgement.loss_tuned, "of": "held out"}]
    colour = altair.Color("of:N", title=None, legend=altair.Legend(orient="top-right"),
                          scale=altair.Scale(domain=["training", "held out"], range=["#7a93b8", "#d1495b"]))
    axes = {"x": altair.X("step:Q", title="optimiser step"),
            "y": altair.Y("loss:Q", title="nats a token", scale=altair.Scale(zero=False)), "color": colour}
    lines = altair.Chart(altair.Data(values=points)).mark_line(strokeWidth=1.5).encode(**axes)
    dots = altair.Chart(altair.Data(values=validation)).mark_line(point=True, strokeWidth=2).encode(**axes)
    chart: altair.LayerChart = _styled(altair.layer(lines, dots), 260)
    return chart


def _line_chart(metrics: list[dict[str, Any]], key: str, title: str, height: int) -> altair.Chart:
    values = [{"step": m["step"], key: m[key]} for m in metrics]
    chart = altair.Chart(altair.Data(values=values)).mark_line(color="#7a93b8", strokeWidth=1.5).encode(
        x=altair.X("step:Q", title="optimiser step"), y=altair.Y(f"{key}:Q", title=title))
    styled: altair.Chart = _styled(chart, height)
    return styled


def _styled(chart: Any, height: int) -> Any:
    grey = "#8a8f98"
    chart = chart.properties(width=640, height=height, background="transparent").configure_view(stroke=None)
    return chart.configure_axis(
        labelColor=grey, titleColor=grey, gridColor="#8a8f9833", domainColor=grey, tickColor=grey,
        labelFont="sans-serif", titleFont="sans-serif",
    ).configure_legend(labelColor=grey, labelFont="sans-serif")
