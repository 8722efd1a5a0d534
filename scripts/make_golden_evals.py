"""Writes tests/golden/evals.npz: tasks scored by PyTorch and transformers, request by request.

    make evals && python scripts/make_golden_evals.py

The model is a tiny OLMo with weights that NumPy draws, so that tests can make the same one. Only
the tables of prompts come from jaxpretrain: contexts and continuations are encoded here, every
request runs alone and without padding, and the metrics are computed below.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "evals.npz"
TASKS = (
    *("arc_easy", "arc_challenge", "piqa", "hellaswag", "winogrande", "openbookqa", "sciq"),
    *("boolq", "csqa", "socialiqa", "copa", "rte", "commitment_bank", "mrpc", "sst2"),
    *("arc_easy:mc_5shot", "copycolors:10way", "basic_skills_arithmetic:rc_5shot"),
)
LIMIT = 200
CONTEXT = 256  # short, so that prompts with examples are truncated
TOKENIZER = "allenai_gpt-neox-olmo-dolma-v1_5"
CONFIG = {
    "architectures": ["OlmoForCausalLM"],
    "model_type": "olmo",
    "vocab_size": 50304,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": CONTEXT,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "clip_qkv": None,
    "tie_word_embeddings": True,
    "eos_token_id": 50279,
    "pad_token_id": 1,
    "torch_dtype": "float32",
}


def write_model(folder: Path) -> None:
    """Writes a Hugging Face folder with random weights, always the same ones."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (CONFIG["vocab_size"], width)}
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name in "qkvo":
            shapes[f"{prefix}.self_attn.{name}_proj.weight"] = (width, width)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (inner, width)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (inner, width)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (width, inner)
    weights = {
        name: (0.2 * random.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG))


def reference(folder: Path) -> dict[str, tuple[np.ndarray, dict[str, float]]]:
    """Returns the log-likelihoods of the choices of each task, in order, and its accuracies."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from jaxpretrain.evals.tasks.catalogue import select
    from jaxpretrain.evals.tasks.package import find_tokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(find_tokenizer(TOKENIZER)))

    def log_likelihood(context: str, continuation: str) -> float:
        scored = tokenizer.encode(continuation, add_special_tokens=False).ids
        query = tokenizer.encode(context, add_special_tokens=False).ids + scored[:-1]
        with torch.no_grad():
            logits = model(torch.tensor([query[-CONTEXT:]])).logits[0, -len(scored) :]
        return -torch.nn.functional.cross_entropy(
            logits.double(), torch.tensor(scored), reduction="sum"
        ).item()

    results = {}
    for task in select(TASKS).take(LIMIT, None).tasks:
        items = [
            ([log_likelihood(c.context, c.continuation) for c in item.choices], item)
            for item in task.items
        ]
        sums = np.array([value for values, _ in items for value in values])
        results[task.name] = (sums, accuracies(items))
        print(task.name, len(sums), results[task.name][1], flush=True)
    return results


def accuracies(items: list[tuple[list[float], Any]]) -> dict[str, float]:
    """Returns the metrics acc and len_norm."""
    hits, hits_by_length = 0, 0
    for sums, item in items:
        lengths = [len(choice.continuation) - 1 for choice in item.choices]
        by_length = [value / length for value, length in zip(sums, lengths, strict=True)]
        hits += sums.index(max(sums)) == item.answer
        hits_by_length += by_length.index(max(by_length)) == item.answer
    return {"acc": hits / len(items), "len_norm": hits_by_length / len(items)}


def main() -> None:
    """Writes the file."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        results = reference(Path(folder))
    arrays: dict[str, Any] = {name: sums.astype(np.float32) for name, (sums, _) in results.items()}
    metrics = json.dumps({name: metrics for name, (_, metrics) in results.items()})
    np.savez_compressed(GOLDEN, metrics=np.array(metrics), **arrays)


if __name__ == "__main__":
    main()
