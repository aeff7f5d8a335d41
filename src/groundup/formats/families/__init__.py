"""Every family that a folder can be of; a new one is a file here and a name in this list."""

from groundup.formats.families.bert import BERT, DISTILBERT, ROBERTA
from groundup.formats.families.clip import CLIP, SIGLIP
from groundup.formats.families.cohere import COHERE, COHERE2
from groundup.formats.families.deepseek import DEEPSEEK_V3
from groundup.formats.families.falcon import FALCON
from groundup.formats.families.gemma import GEMMA, GEMMA2, GEMMA3
from groundup.formats.families.gpt import GPT2, GPT3, OPT
from groundup.formats.families.gpt_neox import GPT_NEOX, GPTJ
from groundup.formats.families.gpt_oss import GPT_OSS
from groundup.formats.families.groundup import GROUNDUP
from groundup.formats.families.jamba import JAMBA
from groundup.formats.families.lfm2 import LFM2, LFM2_MOE
from groundup.formats.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3
from groundup.formats.families.llava import LLAVA
from groundup.formats.families.mamba import MAMBA, MAMBA2
from groundup.formats.families.mixtral import MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE
from groundup.formats.families.modernbert import MODERNBERT
from groundup.formats.families.nanochat import NANOCHAT
from groundup.formats.families.olmo import OLMO2, OLMO3
from groundup.formats.families.palm import PALM
from groundup.formats.families.phi import PHI, PHI3
from groundup.formats.families.qwen3_next import QWEN3_NEXT
from groundup.formats.families.t5 import SWITCH, T5
from groundup.formats.families.vit import VIT
from groundup.formats.families.whisper import WHISPER

ALL_FAMILIES = (
    BERT,
    CLIP,
    SIGLIP,
    LLAVA,
    VIT,
    COHERE,
    COHERE2,
    DEEPSEEK_V3,
    DISTILBERT,
    FALCON,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GPT2,
    GPT3,
    GPTJ,
    GPT_NEOX,
    GPT_OSS,
    GROUNDUP,
    JAMBA,
    LFM2,
    LFM2_MOE,
    LLAMA,
    MAMBA,
    MAMBA2,
    MISTRAL,
    MIXTRAL,
    OLMOE,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    QWEN3_NEXT,
    SMOLLM3,
    MODERNBERT,
    NANOCHAT,
    OLMO2,
    OLMO3,
    OPT,
    PALM,
    PHI,
    PHI3,
    ROBERTA,
    SWITCH,
    T5,
    WHISPER,
)
