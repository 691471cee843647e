"""The graph as a picture: a box per node, a row per policy, an arrow per input."""

from markupsafe import Markup

from larpo.report.data import NodeRecord

BOX_W, BOX_H, GAP_X, GAP_Y = 100, 48, 26, 42
LINE = 14


def draw_graph(nodes: list[NodeRecord], columns: list[str], colours: dict[str, str]) -> Markup:
    """Arrows as the manifests' inputs tell them.

    A node without a manifest is drawn dashed, and nothing is known of its inputs.
    """
    places: dict[str, tuple[float, float]] = {}
    y = 4.0
    for row in dict.fromkeys(n.row for n in nodes):
        stacked: dict[int, int] = {}
        for node in (n for n in nodes if n.row == row):
            column = columns.index(node.column)
            height = stacked.get(column, 0)
            places[node.stage] = (4.0 + column * (BOX_W + GAP_X), y + height * (BOX_H + 8))
            stacked[column] = height + 1
        y += max(stacked.values()) * (BOX_H + 8) - 8 + GAP_Y
    width, height = 8 + len(columns) * (BOX_W + GAP_X) - GAP_X, y - GAP_Y + 26
    makers = {path: n.stage for n in nodes for path in n.outputs}
    sources = {n.stage: {makers[p] for p in (n.manifest or {}).get("inputs", {}) if p in makers} for n in nodes}
    arrows = [_arrow(places[s], places[n.stage]) for n in nodes for s in sorted(sources[n.stage])]
    boxes = [_box(n, *places[n.stage], colours.get(n.row, "#888")) for n in nodes]
    return Markup(
        '<svg class="graph" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" '
        'role="img" aria-label="Nodes of the graph and what each one read"><defs><marker id="arrow" '
        'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto"><path '
        'd="M0,0.5 L8,4 L0,7.5z"/></marker></defs>{2}{3}</svg>'
    ).format(width, height, Markup("").join(arrows), Markup("").join(boxes))


def _box(node: NodeRecord, x: float, top: float, colour: str) -> Markup:
    label = node.stage if node.label is None else node.label
    label = label if len(label) <= 13 else label[:12] + "…"
    below = ["no manifest" if node.manifest is None else duration(node.manifest["seconds"])]
    if node.label is not None:  # the kind, whose place the label takes
        below = [node.name, *below]
    state, middle = "" if node.manifest else " absent", x + BOX_W / 2
    first = top + (BOX_H - LINE * (1 + len(below))) / 2 + 11  # baseline of the first line
    lines = [
        Markup('<text class="sub" x="{}" y="{}">{}</text>').format(middle, first + LINE * i, line)
        for i, line in enumerate(below, 1)
    ]
    return Markup(
        '<g class="node{}"><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="5" '
        'style="stroke:{}"/><text x="{}" y="{}">{}</text>{}</g>'
    ).format(state, node.stage, x, top, BOX_W, BOX_H, colour, middle, first, label, Markup("").join(lines))


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> Markup:
    (x1, y1), (x2, y2) = start, end
    bottom, centre1, centre2 = y1 + BOX_H, x1 + BOX_W / 2, x2 + BOX_W / 2
    if abs(y1 - y2) < 2 * BOX_H and x2 - x1 == BOX_W + GAP_X:  # the neighbour, or stacked beside it
        path = f"M{x1 + BOX_W},{y1 + BOX_H / 2} L{x2 - 2},{y2 + BOX_H / 2}"
    elif y1 == y2:  # over the boxes between: a bow below the row
        a, b = x1 + BOX_W * 0.6, x2 + BOX_W * 0.4
        depth = bottom + min(34, 8 + 0.035 * abs(x2 - x1))
        path = f"M{a},{bottom} C{a + 15},{depth} {b - 15},{depth} {b},{bottom + 2}"
    else:  # down to a later row
        middle = (bottom + y2) / 2
        path = f"M{centre1},{bottom} C{centre1},{middle + 6} {centre2},{middle - 6} {centre2},{y2 - 2}"
    return Markup('<path class="edge" d="{}" marker-end="url(#arrow)"/>').format(path)


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
