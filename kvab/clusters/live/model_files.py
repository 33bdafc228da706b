"""Model files for the live cluster, made in code: no weights, no download.

Input: a model's name and context length. Output: a folder in the layout of the Hugging Face hub's
cache, from which Dynamo's frontend and engines and AIPerf load configuration and tokenizer.

The tokenizer has one token for each Unicode code point and merges nothing, so a text of n tokens
is n tokens wherever it is counted: in AIPerf, which makes the prompts, in the frontend, which
counts them, and in the answers.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from kvab.errors import InputError

REVISION = "0" * 40
VOCABULARY = 8192  # the engines sample answer tokens up to about this id
IDEOGRAPHS = 0x4E00  # first code point of the CJK ideographs that fill the vocabulary
ASCII = range(0x20, 0x7F)
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def model_config(model: str, context_length: int) -> dict:
    """Return a model's published configuration, as the simulator carries it.

    Raises
    ------
    InputError
        If the simulator does not carry it.
    """
    folder = resources.files("aisimulate_core") / "model_configs"
    path = folder / f"{model.replace('/', '--')}_config.json"
    if not path.is_file():
        raise InputError(
            f"model {model}: expected its sizes among those that the simulator carries; "
            f"choose one of the models in {folder}"
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    return {**config, "max_position_embeddings": context_length}


def write_model(home: Path, model: str, context_length: int) -> Path:
    """Write a model's files under ``home`` (an ``HF_HOME``) and return their folder."""
    from tokenizers import Tokenizer, decoders, models

    config = model_config(model, context_length)
    place = home / "hub" / f"models--{model.replace('/', '--')}"
    folder = place / "snapshots" / REVISION
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(REVISION, encoding="utf-8")
    points = [*ASCII, *range(IDEOGRAPHS, IDEOGRAPHS + VOCABULARY - len(ASCII))]
    tokenizer = Tokenizer(models.BPE({chr(point): n for n, point in enumerate(points)}, []))
    tokenizer.decoder = decoders.Fuse()
    # The library's own saving hides what the system said, such as a full disk.
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    described = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "chat_template": CHAT,
        "clean_up_tokenization_spaces": False,
    }
    ends = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    for name, content in (
        ("config.json", config),
        ("generation_config.json", ends),
        ("tokenizer_config.json", described),
    ):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return folder
