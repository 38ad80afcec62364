"""Scores of registered versions with their intervals, and their plot over the versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jora_tasks.airflow.pages.addresses import address
from jora_tasks.evaluation.summary import ADAPTER, BASE
from jora_tasks.registry import Listed

MEASURE = "exact_match"
_LOW, _HIGH = ".low", ".high"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 240, 44, 12, 14, 34


@dataclass(frozen=True)
class Score:
    """A measure of one version with its interval, and the base's on the same questions."""

    value: float
    low: float
    high: float
    base: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def measures(versions: Sequence[Listed]) -> list[str]:
    """Measures that some of the versions have with an interval, by name."""
    prefix = f"{ADAPTER}."
    return sorted(
        {
            name.removeprefix(prefix).removesuffix(_LOW)
            for each in versions
            for name in each.metrics
            if name.startswith(prefix) and name.endswith(_LOW)
        }
    )


def scores_of(listed: Listed, measure: str) -> Score | None:
    """A version's score, or None if it was not measured."""
    name = f"{ADAPTER}.{measure}"
    found = [listed.metrics.get(f"{name}{end}") for end in ("", _LOW, _HIGH)]
    if None in found:
        return None
    value, low, high = (float(each) for each in found if each is not None)
    return Score(value, low, high, listed.metrics.get(f"{BASE}.{measure}"))


def score_plot(versions: Sequence[Listed], measure: str, champion: int | None, prefix: str) -> Markup:
    """Dots with intervals, oldest at the left; each is a link to its version. Empty without a score.

    Args:
      versions: newest first.
      champion: the version drawn as champion, None for none.
      prefix: of the addresses.
    """
    scored = [(each, score) for each in reversed(versions) if (score := scores_of(each, measure))]
    if not scored:
        return Markup("")
    bottom = min(0.0, *(score.low for _, score in scored))
    top = max(1.0, *(score.high for _, score in scored))
    across = (_WIDTH - _LEFT - _RIGHT) / len(scored)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        Markup('<svg class="plot" viewBox="0 0 {} {}" role="group" aria-label="{}">').format(
            _WIDTH, _HEIGHT, f"{measure.replace('_', ' ')} by version, with intervals"
        )
    ]
    for tick in (bottom + (top - bottom) * part / 4 for part in range(5)):
        parts.append(
            Markup('<line class="grid" x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}"/>').format(
                _LEFT, y(tick), _WIDTH - _RIGHT, y(tick)
            )
        )
        parts.append(
            Markup('<text class="tick end" x="{}" y="{:.1f}">{:.2f}</text>').format(
                _LEFT - 8, y(tick) + 4, tick
            )
        )
    every = -(-len(scored) // 20)  # labels that do not run into each other
    for index, (each, score) in enumerate(scored):
        x, version = _LEFT + across * (index + 0.5), each.adapter.version
        label = f"version {version}: {score}"
        parts.append(
            Markup('<a href="{}" class="score{}" aria-label="{}"><title>{}</title>').format(
                prefix + address("adapters", each.adapter.name, "versions", version),
                " champion" if version == champion else "",
                label,
                label,
            )
        )
        # Something wide enough to point at.
        parts.append(
            Markup('<rect class="target" x="{:.1f}" y="{}" width="{:.1f}" height="{}"/>').format(
                x - across / 2, _TOP, across, _HEIGHT - _TOP - _BOTTOM
            )
        )
        if score.base is not None:
            parts.append(
                Markup('<line class="base" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
                    x - 7, y(score.base), x + 7, y(score.base)
                )
            )
        parts.append(
            Markup('<line class="whisker" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
                x, y(score.low), x, y(score.high)
            )
        )
        parts.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5"/></a>').format(x, y(score.value)))
        if index % every == 0:
            parts.append(
                Markup('<text class="tick middle" x="{:.1f}" y="{}">{}</text>').format(
                    x, _HEIGHT - 12, version
                )
            )
    return Markup("").join([*parts, Markup("</svg>")])
