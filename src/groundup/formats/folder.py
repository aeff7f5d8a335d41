"""Where a model folder is and what lies in it: the names of its files, and those that are JSON.

None of it is trusted.
"""

import json
import os
from pathlib import Path
from typing import Any

from groundup.errors import UserError

HUB_PREFIX = "hf:"
CONFIG, GENERATION = "config.json", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
# Every published kind of tokenizer consists of some of these.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
# Parsed, JSON takes up to forty times its size. The longest index there is, of 150,000 tensors, has a third of this.
LARGEST_JSON = 50_000_000


def local_folder(place: str | os.PathLike[str]) -> Path:
    """The folder that a path names; `hf:org/name` and `hf:org/name@revision` are downloaded first, if need be.

    Raises UserError as `hub.fetch` does.
    """
    if not is_on_hub(place):
        return Path(place)
    from groundup.formats.hub import fetch  # loads an HTTP client, which no local folder needs

    return fetch(os.fspath(place).removeprefix(HUB_PREFIX))


def is_on_hub(place: str | os.PathLike[str]) -> bool:
    """Whether it names a model of the Hugging Face hub, not a path."""
    return os.fspath(place).startswith(HUB_PREFIX)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises UserError for anything else, be it too large or too deep."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if path.stat().st_size > LARGEST_JSON:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; no more than {LARGEST_JSON:,} are read")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the former also for bytes that are no text and for endless numbers
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def read_index(folder: Path) -> dict[str, str]:
    """Tensor → file in the folder itself; an index may name nothing outside it."""
    path = folder / INDEX
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path}: `weight_map` must be an object of tensor names and their files")
    for name, file in places.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise UserError(f"{path}: tensor `{name}` lies in {file!r}, which is no safetensors file of this folder")
    return places
