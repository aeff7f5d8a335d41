"""HTML and SVG elements as values: text is escaped by type, not by remembering to.

    tag("p", "a < b", class_="note")   →   <p class="note">a &lt; b</p>

What is `Markup` was built here and stands as it is; every other string is text from somewhere and gets escaped.
"""

from markupsafe import Markup, escape

_VOID = frozenset({"br", "hr", "meta", "circle", "line", "path", "polyline", "rect"})

Child = str | float | None


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """One element. None among children or attributes is left out.

    Python's own words take a trailing underscore (`class_`); other underscores become hyphens (`stroke_width`).
    """
    written = "".join(
        f' {attribute.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for attribute, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child, separator: str = "") -> Markup:
    """Elements and texts one after another; None is left out."""
    return Markup(escape(separator)).join(escape(_text(child)) for child in children if child is not None)


def _text(value: str | float) -> str:
    """Coordinates need no more than two decimals."""
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
