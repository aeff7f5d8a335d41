"""ViT, CLIP, SigLIP and LLaVA give the outputs of their reference in float64, whoever wrote the folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from references import Float64Everywhere
from safetensors.torch import load_file, save_file
from torch import Tensor
from variants_vision import IMAGE_TOKEN, VARIANTS, texts_with_images, vision_inputs, vision_reference

from groundup.errors import UserError
from groundup.formats.huggingface import COMMON_KEYS, FAMILIES, load_language_model, load_model, save_model
from groundup.formats.keys import Keys
from groundup.model.cache import KeyValueCache
from groundup.model.dual_encoder import DualEncoder
from groundup.model.vision_language import VisionLanguageModel

Published = Callable[..., Path]
ALL = pytest.mark.parametrize("variant", VARIANTS)
HEAT = pytest.mark.parametrize("hot", [False, True], ids=["default weights", "hot weights"])
LLAVA = pytest.mark.parametrize("variant", [one for one in VARIANTS if one.startswith("llava")])
OUTPUTS = ("logits_per_image", "logits_per_text", "text_embeds", "image_embeds")


@torch.no_grad()
def their_outputs(variant: str, folder: Path, **inputs: Tensor) -> tuple[Tensor, ...]:
    """Of a folder in which the reference finds exactly the tensors that it looks for."""
    cls = getattr(transformers, VARIANTS[variant][0])
    with Float64Everywhere():
        model, found = cls.from_pretrained(
            folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
        )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            assert not found[kind], f"{kind}: {found[kind]}"
        given = model(**(inputs or vision_inputs(variant)))
    return (given.logits,) if "logits" in given else tuple(given[name] for name in OUTPUTS)


@torch.no_grad()
def our_outputs(model: torch.nn.Module, variant: str) -> tuple[Tensor, ...]:
    given = model(**vision_inputs(variant))
    return (given,) if isinstance(given, Tensor) else tuple(given)


def distance(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """The largest relative difference among the outputs."""
    assert all(one.dtype == other.dtype == torch.float64 for one, other in zip(ours, theirs, strict=True))
    assert [one.shape for one in ours] == [other.shape for other in theirs]
    return max(float((one - other).norm() / other.norm()) for one, other in zip(ours, theirs, strict=True))


@HEAT
@ALL
def test_a_folder_gives_equal_outputs_in_both_directions(variant: str, hot: bool, published: Published, tmp_path: Path):
    theirs, ours = published(vision_reference, variant, hot), tmp_path / "ours"
    model = load_model(theirs, torch.float64)
    outputs = our_outputs(model, variant)
    assert distance(outputs, their_outputs(variant, theirs)) <= 1e-9
    ours.mkdir()
    save_model(model, ours)
    assert distance(outputs, their_outputs(variant, ours)) <= 1e-9


@ALL
def test_what_is_saved_comes_back_to_the_bit(variant: str, published: Published, tmp_path: Path):
    ours = tmp_path / "ours"
    model = load_model(published(vision_reference, variant, True))
    ours.mkdir()
    save_model(model, ours)
    again = load_model(ours)
    assert again.config == model.config
    for (name, one), (other_name, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)


@LLAVA
@torch.no_grad()
def test_however_a_text_with_images_comes_the_logits_are_the_same(variant: str, published: Published):
    """Cached = uncached, in chunks = at once, left-padded = unpadded, a batch = each row alone."""
    model = load_model(published(vision_reference, variant, True), torch.float64)
    assert isinstance(model, VisionLanguageModel)
    ids, pixels = vision_inputs(variant).values()
    expected = model(ids, pixels)
    embedded = model.embed(ids, pixels)
    for chunks in ([1] * ids.shape[1], [7, 1, ids.shape[1] - 8]):
        cache = KeyValueCache(model.text)
        parts = zip(ids.split(chunks, dim=1), embedded.split(chunks, dim=1), strict=True)
        logits = [model(part, cache=cache, embedded=entering) for part, entering in parts]
        assert distance((torch.cat(logits, dim=1),), (expected,)) <= 1e-9
    cache = KeyValueCache(model.text)
    prompt = ids.shape[1] - 2  # the last two tokens are text, as all are that a model writes
    logits = [
        model(ids[:, :prompt], pixels, cache=cache),
        *(model(ids[:, [i]], cache=cache) for i in (prompt, prompt + 1)),
    ]
    assert distance((torch.cat(logits, dim=1),), (expected,)) <= 1e-9
    for row, images in ((0, slice(0, 1)), (1, slice(1, 3))):
        assert distance((model(ids[[row]], pixels[images]),), (expected[[row]],)) <= 1e-9
    padded = torch.cat((torch.full((2, 5), 3), ids), dim=1)
    mask = (torch.arange(padded.shape[1]) >= 5).long().expand(2, -1)
    assert distance((model(padded, pixels, mask)[:, 5:],), (expected,)) <= 1e-9


def test_a_masked_text_of_clip_gives_what_the_reference_gives(tmp_path: Path):
    vision_reference("clip", hot=True).save_pretrained(tmp_path)
    model = load_model(tmp_path, torch.float64)
    inputs = vision_inputs("clip")
    for side in ("right", "left"):
        mask = torch.ones_like(inputs["input_ids"])
        mask[1, 5:] = 0  # the text ends at place 3
        if side == "left":
            mask, inputs["input_ids"] = mask.flip(1), inputs["input_ids"].flip(1)
        with torch.no_grad():
            ours = tuple(model(**inputs, attention_mask=mask))
        assert distance(ours, their_outputs("clip", tmp_path, **inputs, attention_mask=mask)) <= 1e-9


# Folders as others write them.


def _read(values: dict[str, Any]) -> Any:
    """The configuration of the keys, as the family reads them."""
    return FAMILIES[values["model_type"]].read(Keys(values))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_keys_that_a_tower_leaves_out_have_its_own_defaults(family: str):
    cls = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}[family]
    spelt_out = json.loads(json.dumps(cls().to_dict(), default=str))
    assert _read({"model_type": family}) == _read(spelt_out)
    assert _read({"model_type": family, "text_config": {}, "vision_config": None}) == _read(spelt_out)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("image", ["clip_vision_model", "siglip_vision_model", None])
def test_keys_that_the_parts_of_llava_leave_out_have_their_own_defaults(text: str, image: str | None):
    sparse = {"model_type": "llava", "image_token_index": 5, "text_config": {"model_type": text}}
    if image is not None:
        sparse["vision_config"] = {"model_type": image}
    parts = {key: value for key, value in sparse.items() if key != "model_type"}
    spelt_out = json.loads(json.dumps(transformers.LlavaConfig(**parts).to_dict(), default=str))
    assert _read(sparse) == _read(spelt_out)


def test_the_published_keys_of_llava_1_5_are_understood():
    """The file of version 4: Vicuna 7B over CLIP ViT-L/14 at 336 pixels; most sizes are left out."""
    published = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.36.2",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }
    keys = Keys(published)
    keys.without_effect(*COMMON_KEYS)
    config = FAMILIES["llava"].read(keys)
    assert keys.unread() == []
    assert (config.text.width, len(config.text.layers), config.text.layers[0].network.width) == (4096, 32, 11008)
    assert (config.image.width, len(config.image.layers), config.image.grid) == (1024, 24, (24, 24))
    assert config.image.layers[0].network.activation == "quick_gelu"
    assert (config.feature_layers, config.image_tokens) == ((23,), 576)


def test_the_older_place_of_a_towers_keys_comes_first():
    older = {"model_type": "clip", "text_config": {"hidden_act": "gelu"}, "text_config_dict": {"vocab_size": 99}}
    given = {key: dict(value) for key, value in older.items() if key != "model_type"}  # the reference changes them
    theirs = transformers.CLIPConfig(**given).text_config
    config = _read(older)
    assert (theirs.hidden_act, theirs.vocab_size) == ("quick_gelu", 99)
    assert config.text.vocab_size == 99
    assert config.text.layers[0].network.activation == "quick_gelu"
    assert _read(older | {"text_config_dict": None}).text.layers[0].network.activation == "gelu"


def _with_other_names(folder: Path, rename: dict[str, str]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for old, new in rename.items():
        assert any(old in name for name in tensors), old
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


VIT_IN_MEMORY = {
    "encoder.layer.": "layers.",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
LLAVA_IN_MEMORY = {
    "language_model.lm_head": "lm_head",
    "language_model.model.": "model.language_model.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
LAYOUTS = {
    "vit as in memory": ("vit", VIT_IN_MEMORY),
    "llava as in memory": ("llava", LLAVA_IN_MEMORY),
    "llava tower as version 4 has it": ("llava", {"vision_tower.": "vision_tower.vision_model."}),
    "llava both": ("llava", LLAVA_IN_MEMORY | {"model.vision_tower.": "model.vision_tower.vision_model."}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_tensors_is_read(layout: str, tmp_path: Path):
    variant, rename = LAYOUTS[layout]
    vision_reference(variant, hot=True).save_pretrained(tmp_path)
    before = load_model(tmp_path)
    _with_other_names(tmp_path, rename)
    after = load_model(tmp_path)
    assert all(map(torch.equal, before.parameters(), after.parameters()))


def test_what_old_files_hold_too_is_passed_over(tmp_path: Path):
    vision_reference("clip", hot=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["text_model.embeddings.position_ids"] = torch.arange(11)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(10)[None]
    save_file(tensors, tmp_path / "model.safetensors")
    load_model(tmp_path)
    save_file(tensors | {"vision_model.embeddings.other": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"`vision_model\.embeddings\.other` has no place in a clip model"):
        load_model(tmp_path)


def test_a_tied_head_of_llava_may_be_on_disk_if_it_is_the_embedding(tmp_path: Path):
    vision_reference("llava qwen2, tied", hot=True).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "language_model.lm_head.weight" not in tensors
    embedding = tensors["language_model.model.embed_tokens.weight"]
    save_file(tensors | {"language_model.lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors")
    load_model(tmp_path)
    save_file(tensors | {"language_model.lm_head.weight": embedding + 1}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"`language_model\.lm_head\.weight` has no place"):
        load_model(tmp_path)


@pytest.mark.parametrize("place", ["llava", "text_config"])
def test_a_head_of_llava_is_tied_by_either_place(place: str, tmp_path: Path):
    variant = "llava qwen2, tied"
    vision_reference(variant, hot=True).save_pretrained(tmp_path)
    keys = json.loads((tmp_path / "config.json").read_text())
    assert keys["tie_word_embeddings"] and keys["text_config"]["tie_word_embeddings"]
    del (keys if place == "text_config" else keys["text_config"])["tie_word_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(keys))
    model = load_model(tmp_path, torch.float64)
    assert distance(our_outputs(model, variant), their_outputs(variant, tmp_path)) <= 1e-9


def test_labels_keep_their_names(tmp_path: Path):
    reference = vision_reference("vit", hot=False)
    reference.config.id2label = {number: f"kind of {number}" for number in range(5)}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    reference.save_pretrained(tmp_path / "theirs")
    save_model(load_model(tmp_path / "theirs"), tmp_path / "ours")
    theirs = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert theirs.id2label == {number: f"kind of {number}" for number in range(5)}


# What is refused, and in which words.


def _refusal(variant: str, folder: Path, edit: Any) -> str:
    vision_reference(variant, hot=False).save_pretrained(folder)
    keys = json.loads((folder / "config.json").read_text())
    edit(keys)
    (folder / "config.json").write_text(json.dumps(keys))
    with pytest.raises(UserError) as refusal:
        load_model(folder)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_key_of_a_tower_that_is_not_known_is_named(tmp_path: Path):
    message = _refusal("clip", tmp_path, lambda keys: keys["vision_config"].update(registers=4))
    assert "`vision_config.registers` is not a key that clip has here" in message


def test_a_tower_of_another_family_is_named(tmp_path: Path):
    message = _refusal("llava", tmp_path, lambda keys: keys["vision_config"].update(model_type="pixtral"))
    assert "`vision_config.model_type` must be one of clip_vision_model, siglip_vision_model, not 'pixtral'" in message


def test_an_image_token_that_the_text_model_lacks_is_refused(tmp_path: Path):
    assert "the image token 64" in _refusal("llava", tmp_path, lambda keys: keys.update(image_token_index=64))


def test_a_layer_that_the_tower_lacks_is_refused(tmp_path: Path):
    message = _refusal("llava", tmp_path, lambda keys: keys.update(vision_feature_layer=-5))
    assert "layers 0 to 3, not from [-1]" in message


def test_vectors_that_cannot_be_compared_are_refused(tmp_path: Path):
    message = _refusal("siglip", tmp_path, lambda keys: keys["text_config"].update(projection_size=20))
    assert "vectors of 20 numbers for texts and 32 for images cannot be compared" in message


def test_images_of_another_size_are_refused(tmp_path: Path):
    vision_reference("vit", hot=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"shape \(1, 2, 16, 12\); this model sees images of \(2, 12, 12\)"):
        load_model(tmp_path)(torch.zeros(1, 2, 16, 12))


def test_image_tokens_and_images_must_match_in_number(tmp_path: Path):
    vision_reference("llava", hot=False).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = texts_with_images(9)
    for pixels, message in (
        (torch.zeros(2, 2, 12, 12), r"27 image tokens \(number 62\), the 2 images need 18: 9 each"),
        (None, r"27 image tokens .* the 0 images need 0"),
    ):
        with pytest.raises(UserError, match=message):
            model(ids, pixels)
    with pytest.raises(UserError, match=r"0 image tokens .* the 1 images need 9"):
        model(ids.masked_fill(ids == IMAGE_TOKEN, 0), torch.zeros(1, 2, 12, 12))


def test_texts_that_a_tower_cannot_read_are_refused(tmp_path: Path):
    for variant in ("clip", "siglip"):
        vision_reference(variant, hot=False).save_pretrained(tmp_path / variant)
    clip, siglip = (load_model(tmp_path / variant) for variant in ("clip", "siglip"))
    assert isinstance(clip, DualEncoder) and isinstance(siglip, DualEncoder)
    with pytest.raises(UserError, match="a text of 12 tokens is too long; it may have 11"):
        siglip.embed_texts(torch.zeros(1, 12, dtype=torch.int64))
    with pytest.raises(UserError, match="pad texts to 11 tokens and leave out the attention mask"):
        siglip.embed_texts(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[1, 1, 0]]))
    siglip.embed_texts(torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(UserError, match="a text has no token 5, which ends it"):
        clip.embed_texts(torch.tensor([[4, 5], [4, 6]]))


def test_a_model_of_images_is_no_language_model(tmp_path: Path):
    vision_reference("clip", hot=False).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds a clip model; this needs one of text alone"):
        load_language_model(tmp_path)
