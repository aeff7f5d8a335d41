"""The lineage of a run as inline SVG: boxes in the order they were made, arrows from each to what was made from it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from groundup.record.charts import svg
from groundup.record.markup import join, tag

_NARROWEST_BOX = 100  # pixels with the gap beside it: room for a name of ten letters


@dataclass(frozen=True)
class Node:
    """One box of a lineage graph. inputs: keys of the nodes it was made from, which come earlier."""

    key: str
    label: str
    note: str
    inputs: Sequence[str] = field(default=())
    is_external: bool = False


def lineage_graph(nodes: Sequence[Node], title: str, description: str, width: int) -> Markup:
    """Draw the nodes, which are given in an order where inputs come first.

    Boxes stand in a row if the width allows, else one below the other; arrows to a neighbour are straight, longer ones
    bow around what lies between.
    """
    if width >= _NARROWEST_BOX * len(nodes):
        return _lineage_row(nodes, title, description, width)
    return _lineage_column(nodes, title, description, width)


def _box(node: Node, x: float, y: float, width: float, height: float) -> Markup:
    return join(
        tag("rect", class_="box external" if node.is_external else "box", x=x, y=y, width=width, height=height, rx=6),
        tag("text", node.label, class_="name", x=x + width / 2, y=y + 20, text_anchor="middle"),
        tag("text", node.note, class_="id", x=x + width / 2, y=y + 37, text_anchor="middle"),
    )


def _edges(nodes: Sequence[Node]) -> list[tuple[int, int]]:
    places = {node.key: index for index, node in enumerate(nodes)}
    return [(places[key], index) for index, node in enumerate(nodes) for key in node.inputs if key in places]


def _arrow(path: str) -> Markup:
    """The head is drawn as part of the path, since a marker needs an id and a page may hold the same drawing twice."""
    return tag("path", class_="edge", d=path)


def _lineage_row(nodes: Sequence[Node], title: str, description: str, width: int) -> Markup:
    edges = _edges(nodes)
    longest = max((end - start for start, end in edges), default=1)
    gap = 26.0
    box = (width - 2 - gap * (len(nodes) - 1)) / len(nodes)
    top, height = 8.0 + 22.0 * max(longest - 1, 0), 48.0
    lefts = [1 + index * (box + gap) for index in range(len(nodes))]
    drawn = []
    for (start, end), slot in zip(edges, _slots(edges), strict=True):
        if end - start == 1:
            x, y = lefts[end], top + height / 2
            drawn.append(_arrow(f"M{lefts[start] + box:.1f},{y}H{x:.1f}m-6,-4l6,4l-6,4"))
        else:
            leave, arrive = lefts[start] + box * 0.72, lefts[end] + box * (0.12 + 0.14 * slot)
            rise = top - 22.0 * (end - start - 1) - 6
            bow = f"M{leave:.1f},{top}C{leave:.1f},{rise:.1f} {arrive:.1f},{rise:.1f} {arrive:.1f},{top}"
            drawn.append(_arrow(f"{bow}m-4,-6l4,6l4,-6"))
    boxes = [_box(node, left, top, box, height) for node, left in zip(nodes, lefts, strict=True)]
    return svg(title, description, width, top + height + 2, *drawn, *boxes)


def _lineage_column(nodes: Sequence[Node], title: str, description: str, width: int) -> Markup:
    edges = _edges(nodes)
    longest = max((end - start for start, end in edges), default=1)
    gap, height = 24.0, 48.0
    reach = min(18.0, 110.0 / max(longest - 1, 1))
    box = width - 2 - reach * max(longest - 1, 0) - 12
    tops = [1 + index * (height + gap) for index in range(len(nodes))]
    drawn = []
    for (start, end), slot in zip(edges, _slots(edges), strict=True):
        if end - start == 1:
            x, y = box / 2, tops[end]
            drawn.append(_arrow(f"M{x:.1f},{tops[start] + height}V{y}m-4,-6l4,6l4,-6"))
        else:
            leave, arrive = tops[start] + height * 0.72, tops[end] + height * (0.12 + 0.14 * slot)
            right = box + reach * (end - start - 1) * 1.33 + 8
            edge = box + 1
            bow = f"M{edge:.1f},{leave:.1f}C{right:.1f},{leave:.1f} {right:.1f},{arrive:.1f} {edge:.1f},{arrive:.1f}"
            drawn.append(_arrow(f"{bow}m6,-4l-6,4l6,4"))
    boxes = [_box(node, 1, top, box, height) for node, top in zip(nodes, tops, strict=True)]
    return svg(title, description, width, tops[-1] + height + 2, *drawn, *boxes)


def _slots(edges: Sequence[tuple[int, int]]) -> list[int]:
    """A place of its own for each long arrow that ends at the same box: the longest lands outermost."""
    slots = {}
    for end, group in itertools.groupby(sorted(edges, key=lambda edge: (edge[1], edge[0])), key=lambda edge: edge[1]):
        for slot, edge in enumerate(reversed([edge for edge in group if end - edge[0] > 1])):
            slots[edge] = slot
    return [slots.get(edge, 0) for edge in edges]
