"""The verb that changes the form of a model: a folder into a GGUF file, and back."""

import argparse
import shutil
from pathlib import Path

from groundup.cli.parser import Verbs
from groundup.cli.places import require_place_for
from groundup.cli.talking import find_model
from groundup.errors import UserError
from groundup.formats.folder import is_on_hub
from groundup.storage import finish_folder, flush_folder, working_folder

# Spelled out, so that no library is loaded to parse a command; a test holds it against `formats/gguf/blocks.py`.
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")

EXPORT_ABOUT = """\
Write a model as one GGUF file, which llama.cpp and what is built on it run: weights, tokenizer and chat
template. Or write a GGUF file as a Hugging Face folder, its weights in float32 where they were quantized.
A model that llama.cpp does not know, or would not compute alike, is refused. Of BERT goes all but the
head that guesses masked tokens: llama.cpp gives a vector for each token, and nothing else."""

EXPORT_AFTER = """\
examples:
  groundup export runs/mine --to mine.gguf --type q8_0
  groundup export mine.gguf --to mine/

q8_0 takes a quarter of the bytes of f32, q4_0 an eighth; docs/families.md says which families and tokenizers go."""


def add_verbs(verbs: Verbs) -> None:
    """Add `export`."""
    about, usage = "write a model as a GGUF file for llama.cpp, or back", "RUN|MODEL|FILE.gguf --to FILE.gguf|FOLDER"
    export = verbs.add("export", about, _export, usage, EXPORT_ABOUT, EXPORT_AFTER)
    about = "run folder, model folder, hf:org/name or GGUF file"
    export.add_argument("model", type=Path, metavar="RUN|MODEL|FILE.gguf", help=about)
    export.add_argument("--to", type=Path, required=True, metavar="PATH", help="file that ends in .gguf, or new folder")
    export.add_argument(
        "--type", choices=TYPES, default="f16", help="of the weights in a GGUF file: %(choices)s (default: %(default)s)"
    )


def _export(flags: argparse.Namespace) -> None:
    if not (is_on_hub(flags.model) or flags.model.exists()):
        raise UserError(f"{flags.model}: there is no such file or folder")
    into_file = flags.to.suffix == ".gguf"
    if flags.model.is_file() == into_file:
        raise UserError(
            "a model folder is exported `--to` a file that ends in .gguf, a GGUF file to a folder; "
            f"not {flags.model} to {flags.to}"
        )
    if into_file:
        require_place_for(flags.to)
        _write_file(find_model(flags.model, "sft"), flags.to, flags.type)
    else:
        _write_folder(flags.model, flags.to)
    print(flags.to)


def _write_file(folder: Path, path: Path, weights: str) -> None:
    from groundup.formats.gguf.model_file import save_gguf
    from groundup.formats.huggingface import load_model

    save_gguf(load_model(folder), folder, path, weights)


def _write_folder(path: Path, folder: Path) -> None:
    from groundup.formats.gguf.container import GgufFile
    from groundup.formats.gguf.model_file import load_gguf
    from groundup.formats.gguf.vocabulary import write_vocabulary
    from groundup.formats.huggingface import save_model

    if folder.exists():
        raise UserError(f"{folder} is there already; name a folder that is not")
    require_place_for(folder)
    model = load_gguf(path)
    working = working_folder(folder)
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        ids = write_vocabulary(GgufFile(path), working)
        save_model(model, working, **ids)
        flush_folder(working)
        finish_folder(working, folder)
    finally:
        shutil.rmtree(working, ignore_errors=True)
