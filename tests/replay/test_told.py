from jaxpretrain.replay.told import tell

STEP = {"step": 5, "loss": 2.0, "grad_norm": 1.5, "clipped_to": 2 / 3, "learning_rate": 1e-3}
DOCUMENT = {
    "steps": [5, 5],
    "proof": {"words": "identical: ...", "steps": [{"step": 5, "state": "identical"}]},
    "twice": "computed twice: the same bits in all 1 steps",
    "suspects": [{"kind": "shard", "name": "a.npy", "why": "its loss is high"}],
    "metrics": [STEP | {"step": 4}, STEP],
    "examples": [],
    "documents": [
        {"loss": 3.0, "gradient": None, "again": [7, 9], "words": "a.npy, tokens 1 to 2"}
    ],
    "arms": [{"name": "--without=5", "words": "the spike stays away"}],
    "against": ["they part at step 5"],
}


def test_a_replay_is_told_in_words():
    lines = [*tell(DOCUMENT)]
    assert lines[:2] == ["they part at step 5", ""]
    lines = lines[2:]
    assert lines[:2] == ["the same steps? identical: ...", DOCUMENT["twice"]]
    assert lines[3:6] == [
        "suspects, the likeliest cause first:",
        "1. shard: a.npy",
        "   its loss is high",
    ]
    (row,) = (line.split() for line in lines if line.startswith("5 "))
    assert row[3:] == ["67%", "0.001", "identical"]
    assert not any(line.startswith("4 ") for line in lines)
    assert "  loss 3.000, also in sample 7, 9: a.npy, tokens 1 to 2" in lines
    assert lines[-1] == "--without=5: the spike stays away"
