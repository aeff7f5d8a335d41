"""The whole street in seconds: a recipe and texts of sentences that have something to ask about."""

import random
from pathlib import Path

# A corpus of 40 kB, a model of 40,000 weights.
RECIPE = """\
[corpus]
paths = ["texts"]
min_chars = 10
heldout_fraction = 0.2
quality_filters = false
near_duplicate_threshold = 1.0

[tokenizer]
vocab_size = 400

[tokens]

[pretrain]
preset = "llama"
depth = 1
width = 32
head_dim = 16
context = 256
tokens = 10240
batch_tokens = 1024
micro_batch_tokens = 1024
precision = "float32"
compile = "never"
evaluations = 2
checkpoint_minutes = 1e-6

[sft]
context = 256
epochs = 1.0
batch_tokens = 1024
passages = 40
precision = "float32"
compile = "never"
evaluations = 2
checkpoint_minutes = 1e-6

[evaluate]
questions = 2
answer_tokens = 8
context = 256
"""


def write_texts(folder: Path) -> None:
    """The texts as files in a new folder."""
    folder.mkdir()
    for number, text in enumerate(texts()):
        (folder / f"text-{number:02}.txt").write_text(text)


def texts() -> list[str]:
    """Twelve texts of twelve paragraphs, always the same."""
    chance = random.Random(5)
    places = "river hill wood tower market bridge harbour garden mill lane".split()
    people = "miller baker sailor widow doctor painter smith king".split()

    def sentence() -> str:
        person, here, there = chance.choice(people), chance.choice(places), chance.choice(places)
        return f"The {person} of the {here} walked to the {there} and found {chance.randrange(100)} coins there."

    return ["\n\n".join(" ".join(sentence() for _ in range(4)) for _ in range(12)) for _ in range(12)]
