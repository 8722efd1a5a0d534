"""Times the training step of Hugging Face's OlmoForCausalLM in PyTorch, for `bench_step.py`.

Each line on standard input is a number of steps; the answer is a JSON list of their times.
"""

import json
import sys
import time
from contextlib import nullcontext


def main() -> None:
    """Builds the model of the sizes in the first argument and answers each line."""
    import torch
    from transformers import OlmoConfig, OlmoForCausalLM

    sizes = json.loads(sys.argv[1])
    torch.manual_seed(0)
    model = OlmoForCausalLM(
        OlmoConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["d_model"],
            intermediate_size=sizes["d_ff"],
            num_hidden_layers=sizes["num_layers"],
            num_attention_heads=sizes["num_heads"],
            max_position_embeddings=sizes["seq_len"],
            use_cache=False,
        )
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.randint(sizes["vocab_size"], (sizes["batch_size"], sizes["seq_len"]))

    def step() -> None:
        half = sizes["dtype"] == "bfloat16"
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for line in sys.stdin:
        seconds = []
        for number in range(int(line) + 1):
            start = time.perf_counter()
            step()
            if number:
                seconds.append(time.perf_counter() - start)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
