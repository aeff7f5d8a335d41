"""What a user can say about the corpus stage: the `[corpus]` table of a recipe and the flags of `groundup corpus`."""

from dataclasses import dataclass

from groundup.settings import setting


@dataclass(frozen=True)
class CorpusConfig:
    """Where the raw text is, what is thrown out, and how much is held out."""

    paths: tuple[str, ...] = setting(
        ("python:stdlib", "python:topics"),
        "files, folders or globs (.txt .md .py .jsonl .parquet; .gz or .xz around text and JSON), or python:stdlib "
        "(the running Python's library) and python:topics (its language reference)",
    )
    text_columns: tuple[str, ...] = setting(
        ("text",),
        "JSON key or Parquet column of the text (a string or a list of paragraphs); where files differ, all of them: "
        "the first that a row has is read",
    )
    quality_filters: bool = setting(
        True, "reject text that looks like no prose or code; turn off for word lists and scripts without spaces"
    )
    min_chars: int = setting(200, "shortest document to keep, in characters")
    near_duplicate_threshold: float = setting(
        0.8, "Jaccard similarity of 5-word shingles from which a document is a copy of another; 1 keeps all but equals"
    )
    heldout_fraction: float = setting(0.05, "part of the kept bytes set apart for evaluation")
    quote_words: int = setting(
        13, "a run of so many words shared with a held-out passage is a quote and is cut from the training text"
    )

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("`paths` is empty; name at least one file, folder or python:stdlib")
        if not self.text_columns:
            raise ValueError("`text_columns` is empty; name the JSON key or Parquet column that holds the text")
        if self.min_chars < 1:
            raise ValueError(f"`min_chars` must be at least 1, not {self.min_chars}")
        if not 0.3 <= self.near_duplicate_threshold <= 1.0:
            raise ValueError(
                f"`near_duplicate_threshold` must be between 0.3 and 1, not {self.near_duplicate_threshold}"
            )
        if not 0.0 < self.heldout_fraction <= 0.5:
            raise ValueError(f"`heldout_fraction` must be above 0 and at most 0.5, not {self.heldout_fraction}")
        if self.quote_words < 8:
            raise ValueError(
                f"`quote_words` must be at least 8, not {self.quote_words}; shorter runs are no quotes but idiom"
            )


@dataclass(frozen=True)
class DocumentsConfig:
    """Documents with a split of one's own, taken as they are: the `[documents]` table of a recipe."""

    train: tuple[str, ...] = setting((), "files, folders or globs to train on, as `paths` of [corpus]")
    heldout: tuple[str, ...] = setting((), "files, folders or globs to measure on")
    text_columns: tuple[str, ...] = setting(
        ("text",), "JSON key or Parquet column of the text; of several, the first that a row has"
    )

    def __post_init__(self) -> None:
        for name in ("train", "heldout"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is empty; name at least one file or folder")
