"""From measurements to one table of ratios. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.scenarios import BARS, OF_A_SERVER, OF_LARES, Bar, Scenario

OURS = "lares"


@dataclass(slots=True)
class Results:
    """What one run measured, of one model."""

    model: str
    scenarios: Sequence[Scenario]
    facts: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    """By peer, measure and round."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The load generator's, as they came."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Peers, or a peer's scenarios, that gave no number, with the reason."""

    def add(self, peer: str, measure: str, round_: int, value: float) -> None:
        """What a round gave."""
        self.values.setdefault(peer, {}).setdefault(measure, {})[round_] = value

    def median(self, peer: str, measure: str) -> float | None:
        """Over the rounds. None where there is none."""
        values = self.values.get(peer, {}).get(measure)
        return statistics.median(values.values()) if values else None

    def ratio(self, measure: str, peer: str) -> float | None:
        """Ours to the peer's: the median over the rounds in which both gave a value, or None if there is none.

        Within a round the two are neighbours in time, on a machine whose speed changes over hours.
        """
        ours, theirs = (self.values.get(name, {}).get(measure, {}) for name in (OURS, peer))
        ratios = [ours[round_] / theirs[round_] for round_ in ours.keys() & theirs.keys() if theirs[round_]]
        return statistics.median(ratios) if ratios else None


def markdown(results: Results) -> str:
    """The report, as Markdown."""
    facts = "\n".join(f"- {name}: {fact}" for name, fact in results.facts.items())
    parts = [f"## {results.model}\n\n{facts}", _measured(results)]
    if bars := _bars(results):
        parts.append(bars)
    if results.left_out:
        parts.append("\n".join(f"- left out: {name}: {why}" for name, why in results.left_out.items()))
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None) -> str:
    """Three digits, or all that stand before the point; `-` for None."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _measured(results: Results) -> str:
    """A line a measure; a peer's cell has its median, and in brackets the ratio of ours to it."""
    peers = list(results.versions)
    head = ["", *(f"{peer} ({results.weights[peer]}), {results.versions[peer]}" for peer in peers)]
    titles = {one.name: f"{one.title}, {one.unit}" for one in results.scenarios}
    titles |= {name: f"{title}, {unit}" for name, (title, unit) in (OF_A_SERVER | OF_LARES).items()}
    body = []
    for measure, title in titles.items():
        cells = [_cell(results, peer, measure) for peer in peers]
        if any(cell != "-" for cell in cells):
            body.append([title, *cells])
    return table(head, body)


def _cell(results: Results, peer: str, measure: str) -> str:
    text = number(results.median(peer, measure))
    ratio = None if peer == OURS else results.ratio(measure, peer)
    return text if ratio is None else f"{text} ({number(ratio)}x)"


def _bars(results: Results) -> str:
    """The bars for which there are numbers, with met or not met. Empty if there are none."""
    titles = {one.name: one.title for one in results.scenarios}
    titles |= {name: title for name, (title, _) in (OF_A_SERVER | OF_LARES).items()}
    body = []
    for bar in BARS:
        if bar.model not in ("", results.model):
            continue
        value = results.ratio(bar.measure, bar.peer) if bar.peer else results.median(OURS, bar.measure)
        if value is not None:
            met = "met" if bar.met(value) else "**not met**"
            body.append([titles[bar.measure], bar.peer or "-", _limit(bar), number(value), met])
    return table(["what", "against", "must", "is", ""], body) if body else ""


def _limit(bar: Bar) -> str:
    limit = f"{number(bar.limit)}{'x' if bar.peer else ''}"
    return f"at most {limit}" if bar.at_most else limit
