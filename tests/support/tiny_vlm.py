"""A SmolVLM in small: configuration and tokenizer made here, weights random when it is built."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, SmolVLMForConditionalGeneration

from policy.artefacts import artefact_digest

WORDS = ("pick", "up", "the", "red", "green", "cube", "stack", "cubes", "lift", "place", "it")
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
IMAGE_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
IMAGE_SIZE = 32


def write_vlm(artefacts: Path, *, weights: bool = False) -> str:
    """Lay a VLM of two layers into a folder of artefacts; its digest, which is also its name.

    ``weights``: with random weights in bfloat16, as the published one has them.
    """
    folder = artefacts / "vlm"
    folder.mkdir(parents=True)
    tokens = list(dict.fromkeys([*SPECIAL.values(), *IMAGE_TOKENS.values(), "\n", *WORDS]))
    tokenizer = Tokenizer(
        models.WordLevel({token: row for row, token in enumerate(tokens)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {
        "model_type": "llama",
        "vocab_size": len(tokens),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    vision = {
        "model_type": "smolvlm_vision",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": 8,
    }
    files = {
        "config.json": {
            "model_type": "smolvlm",
            "architectures": ["SmolVLMForConditionalGeneration"],
            "image_token_id": tokens.index("<image>"),
            "pad_token_id": tokens.index("<pad>"),
            "scale_factor": 2,
            "text_config": text,
            "vision_config": vision,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **SPECIAL,
            "extra_special_tokens": IMAGE_TOKENS,
        },
        "preprocessor_config.json": {
            "image_processor_type": "SmolVLMImageProcessor",
            "processor_class": "SmolVLMProcessor",
            "size": {"longest_edge": IMAGE_SIZE},
            "max_image_size": {"longest_edge": IMAGE_SIZE},
        },
        "processor_config.json": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if weights:
        config = AutoConfig.from_pretrained(folder)
        SmolVLMForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    digest = artefact_digest(folder)
    folder.rename(artefacts / digest)
    return digest
