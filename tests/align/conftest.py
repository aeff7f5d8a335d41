"""Passages of a few modules of the standard library and of a made-up text, as the corpus stage writes them."""

import argparse
import ast
import csv
import inspect
import json.decoder
import json.encoder
import logging
import shutil
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
import xxhash

HELDOUT = {"csv", "textwrap", "1"}

STORIES = [
    "Once upon a time an old miller lived by the river with his daughter Marla. Every morning she carried two sacks of "
    "flour to the market in Brunsford. One day the bridge was broken, and she had to wait for the ferryman Tobin.",
    "The ferryman was a silent man who counted every copper coin. He asked for three coins and a song about Winter. "
    "After the crossing he gave back the coins, for the song had been worth more than silver to old Tobin.",
    "In the city the baker was already angry, because his ovens stood empty. When the flour came at last, he baked "
    "until midnight and sent a loaf to Princess Ilena. She had never tasted bread with honey before.",
]


def _documented(module: ModuleType) -> Iterator[dict[str, Any]]:
    def walk(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[dict[str, Any]]:
        for child in node.body:
            if not isinstance(child, ast.FunctionDef | ast.ClassDef):
                continue
            name = f"{prefix}.{child.name}"
            is_class = isinstance(child, ast.ClassDef)
            inside = (
                ", ".join(map(ast.unparse, child.bases)) if isinstance(child, ast.ClassDef) else ast.unparse(child.args)
            )
            if text := ast.get_docstring(child):
                yield _row(
                    "class" if is_class else "function", name, f"({inside})", text, module.__name__.split(".")[0]
                )
            if isinstance(child, ast.ClassDef):
                yield from walk(child, name)

    yield from walk(ast.parse(inspect.getsource(module)), module.__name__)


def _row(kind: str, name: str, signature: str, text: str, group: str) -> dict[str, Any]:
    return {
        "id": xxhash.xxh3_128_hexdigest(f"{name}\n{text}".encode()),
        "kind": kind,
        "name": name,
        "signature": signature,
        "text": text,
        "group": group,
        "split": "heldout" if group in HELDOUT else "train",
        "document": group,
    }


@pytest.fixture(scope="session")
def code_passages() -> pa.Table:
    modules = [json, json.decoder, json.encoder, logging, argparse, shutil, csv, textwrap]
    return pa.Table.from_pylist([row for module in modules for row in _documented(module)])


@pytest.fixture(scope="session")
def text_passages() -> pa.Table:
    return pa.Table.from_pylist(
        [_row("text", "", "", story, str(number % 2)) for number, story in enumerate(STORIES)]
        + [_row("text", "", "", story.replace("the", "this"), "2") for story in STORIES]
    )
