"""What pre-training has written is a model that `transformers` loads whole: weights, tokenizer and stop tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tiny import DECODERS

from groundup.engine.engine import Engine
from groundup.formats.huggingface import load_model
from groundup.tokens.tokenizer import Tokenizer

PROMPTS = ("import ", "    def __init__(self, ", "Return the ", "x")
NEW_TOKENS = 30


@pytest.mark.parametrize("preset", ["gpt2", "llama", "nanochat", "mamba", "mamba2", "qwen3_next", "lfm2"])
def test_a_trained_folder_continues_a_text_there_as_here(preset: str, pretrained: Callable[[str], Path]):
    folder = pretrained(preset)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    their_words = transformers.AutoTokenizer.from_pretrained(folder)
    words = Tokenizer.load(folder)
    engine = Engine(folder)
    assert engine.stop_ids == {words.eos_id, words.end_id}
    for prompt in PROMPTS:
        ids = their_words(prompt)["input_ids"]
        assert ids == [words.bos_id, *words.encode(prompt)]
        expected = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
        )[0, len(ids) :].tolist()
        if expected[-1] in engine.stop_ids:
            expected.pop()
        answer = engine.generate([ids], max_tokens=NEW_TOKENS)[0].tokens
        assert answer == expected
        assert their_words.decode(answer, skip_special_tokens=True) == words.decode(answer)


@pytest.mark.parametrize("preset", [name for name in DECODERS if name not in ("gpt3", "groundup", "palm")])
def test_a_trained_folder_gives_equal_logits_in_its_own_type(preset: str, pretrained: Callable[[str], Path]):
    folder = pretrained(preset)
    ids = torch.tensor([Tokenizer.load(folder).encode("def parse(text):\n    return json.loads(text)\n")])
    with torch.no_grad():
        ours, theirs = load_model(folder)(ids), transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert ours.dtype == theirs.dtype == torch.float32
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("preset", ["bert", "modernbert", "t5"])
def test_a_trained_folder_guesses_hidden_text_there_as_here(preset: str, pretrained: Callable[[str], Path]):
    folder = pretrained(preset)
    words, their_words = Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
    hidden = "<extra_id_0>" if preset == "t5" else "<|mask|>"
    ids = their_words(f"def parse(text):\n    return {hidden}(text)\n", return_tensors="pt")["input_ids"]
    assert words.control[hidden] in ids[0].tolist()
    with torch.no_grad():
        if preset != "t5":
            theirs = transformers.AutoModelForMaskedLM.from_pretrained(folder)(ids).logits
            ours = load_model(folder)(ids)
        else:
            model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
            assert model.config.decoder_start_token_id == words.bos_id
            start = torch.tensor([[words.bos_id, words.sentinel_ids[0]]])
            theirs = model(input_ids=ids, decoder_input_ids=start).logits
            ours = load_model(folder)(ids, start)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
