"""What a corpus run read, kept, threw out and cut: the figures that the report shows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_EXAMPLE_CHARS = 240


@dataclass
class Rejections:
    """Documents thrown out for one reason, with the first of them as an example."""

    documents: int = 0
    bytes: int = 0
    example: dict[str, str] = field(default_factory=dict)


@dataclass
class Split:
    """What went into one of the two splits. bytes: of UTF-8 text."""

    documents: int = 0
    bytes: int = 0
    passages: int = 0
    groups: set[str] = field(default_factory=set)


@dataclass
class Quotes:
    """What training text shared with held-out passages and lost for it."""

    documents: int = 0
    quotes: int = 0
    words: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Summary:
    """What became of all documents, counted on the way. Sizes are bytes of UTF-8, but for `source_bytes`, of files."""

    source_bytes: int = 0
    raw_documents: int = 0
    raw_bytes: int = 0
    cuts: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, Rejections] = field(default_factory=dict)
    splits: dict[str, Split] = field(default_factory=lambda: {"train": Split(), "heldout": Split()})
    quotes: Quotes = field(default_factory=Quotes)

    def count_cuts(self, cuts: Mapping[str, int]) -> None:
        """What was stripped of some documents: name of the cut → lines or characters."""
        for name, count in cuts.items():
            self.cuts[name] = self.cuts.get(name, 0) + count

    def count_rejected(self, reason: str, path: str, text: str, size: int) -> None:
        """One document thrown out; the first of a reason becomes its example, cut short."""
        rejections = self.rejected.setdefault(reason, Rejections())
        rejections.documents += 1
        rejections.bytes += size
        if not rejections.example:
            rejections.example = {"path": path, "text": text[:_EXAMPLE_CHARS]}

    def count_kept(self, split: str, group: str, size: int, passages: int) -> None:
        """One document of a split. size: bytes. group: what the split goes by."""
        counts = self.splits[split]
        counts.documents += 1
        counts.bytes += size
        counts.passages += passages
        counts.groups.add(group)

    def count_quotes(self, path: str, quotes: list[str]) -> None:
        """One training document and what was cut from it, at least one quote."""
        self.quotes.documents += 1
        self.quotes.quotes += len(quotes)
        self.quotes.words += sum(len(quote.split()) for quote in quotes)
        if len(self.quotes.examples) < 5:
            self.quotes.examples.append({"path": path, "text": quotes[0][:_EXAMPLE_CHARS]})

    def table(self) -> dict[str, Any]:
        """The content of summary.json. Sizes are bytes of UTF-8 text, but `source_bytes`, which are those of the files.

        read: source_bytes, documents, bytes. cut: licence and table lines and characters stripped.
        rejected: one entry per reason, the most frequent first: reason, documents, bytes, example {path, text}.
        quotes: what was cut from train because a held-out passage says it: documents, quotes, words, examples.
        splits: for train and heldout: documents, bytes, groups, passages.
        """
        ranked = sorted(self.rejected.items(), key=lambda item: (-item[1].documents, item[0]))
        return {
            "read": {"source_bytes": self.source_bytes, "documents": self.raw_documents, "bytes": self.raw_bytes},
            "cut": self.cuts,
            "rejected": [{"reason": reason, **vars(rejections)} for reason, rejections in ranked],
            "quotes": vars(self.quotes),
            "splits": {name: {**vars(split), "groups": len(split.groups)} for name, split in self.splits.items()},
        }
