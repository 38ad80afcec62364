"""The graph of nodes as inline SVG: four rows of three, read like a page; every box is a link."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from jora_tasks.airflow.pages.nodes import BUILT, FAILED, MADE, NONE, RUNNING, UNMADE, WAITING, Node

NAMES = {
    "documents": "Documents",
    "corpus": "Corpus",
    "index": "Index",
    "questions": "Questions",
    "contexts": "Contexts",
    "prompts": "Prompts",
    "model": "Base model",
    "adapter": "Adapter",
    "evaluation": "Evaluation",
    "verdict": "Verdict",
    "registered": "Version",
    "champion": "Champion",
}
_PLACES = {kind: divmod(index, 3) for index, kind in enumerate(NAMES)}  # row, column
_EDGES = (
    ("documents", "corpus"),
    ("corpus", "index"),
    ("questions", "contexts"),
    ("index", "contexts"),
    ("contexts", "prompts"),
    ("model", "adapter"),
    ("prompts", "adapter"),
    ("prompts", "evaluation"),
    ("adapter", "evaluation"),
    ("evaluation", "verdict"),
    ("verdict", "registered"),
    ("registered", "champion"),
)
_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 300, 104, 56, 52, 3
_UNMADE = (WAITING, RUNNING, FAILED, UNMADE, NONE)
_LINES, _LONGEST = 3, 34  # below a box's name, and characters of each


def draw(nodes: Mapping[str, Node], prefix: str, title: str) -> Markup:
    """The picture.

    Args:
      nodes: kind → node; kinds that are not there are left out.
      prefix: of the nodes' addresses.
      title: what a screen reader says of it.
    """
    rows = 1 + max(_PLACES[kind][0] for kind in nodes)
    width = 3 * _BOX_WIDTH + 2 * _GAP_X + 2 * _MARGIN
    height = rows * _BOX_HEIGHT + (rows - 1) * _GAP_Y + 2 * _MARGIN
    parts = [
        Markup('<svg class="graph" viewBox="0 0 {} {}" role="group" aria-label="{}">').format(
            width, height, title
        ),
        Markup(
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker></defs>'
        ),
    ]
    parts += [
        _edge(source, target, nodes[target].state in _UNMADE)
        for source, target in _EDGES
        if source in nodes and target in nodes
    ]
    parts += [_box(node, prefix) for node in nodes.values()]
    return Markup("").join([*parts, Markup("</svg>")])


def _corner(kind: str) -> tuple[int, int]:
    row, column = _PLACES[kind]
    return _MARGIN + column * (_BOX_WIDTH + _GAP_X), _MARGIN + row * (_BOX_HEIGHT + _GAP_Y)


def _edge(source: str, target: str, unmade: bool) -> Markup:
    """Along a row, down a column, or down and back to the next row through the gap between the two."""
    (x1, y1), (x2, y2) = _corner(source), _corner(target)
    middle = _BOX_HEIGHT // 2
    if y1 == y2:
        path = f"M{x1 + _BOX_WIDTH} {y1 + middle}H{x2 - 2}"
    elif x1 == x2:
        path = f"M{x1 + _BOX_WIDTH // 2 + 60} {y1 + _BOX_HEIGHT}V{y2 - 2}"
    else:
        start, end, lane = x1 + _BOX_WIDTH // 2, x2 + _BOX_WIDTH // 2, y1 + _BOX_HEIGHT + _GAP_Y // 2
        path = f"M{start} {y1 + _BOX_HEIGHT}V{lane - 8}q0 8 -8 8H{end + 8}q-8 0 -8 8V{y2 - 2}"
    return Markup('<path class="edge{}" d="{}" marker-end="url(#arrow)"/>').format(
        " unmade" if unmade else "", path
    )


def _box(node: Node, prefix: str) -> Markup:
    x, y = _corner(node.kind)
    name = NAMES[node.kind]
    lines = [line for line in (node.label, node.digest[:19]) if line]
    lines += node.facts if len(node.facts) <= _LINES - len(lines) else [", ".join(node.facts)]
    spoken = ", ".join([name, node.state, *lines])
    parts = [
        Markup("<title>{}</title>").format("\n".join([f"{name}: {node.state}", node.label, node.digest])),
        Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="8"/>').format(x, y, _BOX_WIDTH, _BOX_HEIGHT),
        Markup('<text class="name" x="{}" y="{}">{}</text>').format(x + 16, y + 26, name),
        Markup('<text class="state" x="{}" y="{}">{}</text>').format(
            x + _BOX_WIDTH - 16, y + 26, _state(node)
        ),
    ]
    for index, line in enumerate(lines):
        style = "mono" if line in (node.label, node.digest[:19]) else "fact"
        parts.append(
            Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
                style, x + 16, y + 49 + 20 * index, _cut(line)
            )
        )
    inside = Markup("").join(parts)
    style = node.state.replace(" ", "-")
    if not node.href:
        return Markup('<g class="node {}" role="img" aria-label="{}">{}</g>').format(style, spoken, inside)
    return Markup('<a class="node {}" href="{}" aria-label="{}">{}</a>').format(
        style, prefix + node.href, spoken, inside
    )


def _state(node: Node) -> str:
    """How it came about, and the seconds that it took, where this run spent them."""
    spent = node.seconds is not None and node.state in (BUILT, MADE)
    return f"{node.state} · {node.seconds:,.1f} s" if spent else node.state


def _cut(line: str) -> str:
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
