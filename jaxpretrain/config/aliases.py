"""The names that fields have in other trainers, and their names here."""

from collections.abc import Iterable

_NAMES = {
    "optim.schedule.peak": "lr learning_rate max_lr peak_lr base_lr max_learning_rate",
    "optim.schedule.end": "min_lr end_lr final_lr lr_end min_learning_rate",
    "optim.schedule.warmup": "warmup warmup_steps num_warmup_steps lr_warmup t_warmup warmup_iters",
    "optim.schedule": "schedule scheduler lr_schedule lr_scheduler lr_scheduler_type",
    "optim": "optimizer optimizer_type",
    "optim.weight_decay": "wd weight_decay decay",
    "optim.clip_norm": "clip clip_norm grad_clip gradient_clip max_grad_norm clip_grad_norm",
    "optim.betas.0": "beta1 adam_beta1 beta_1",
    "optim.betas.1": "beta2 adam_beta2 beta_2",
    "optim.epsilon": "eps epsilon adam_eps adam_epsilon",
    "train.batch_size": "bs batch batch_size global_batch_size train_batch_size "
    "global_train_batch_size",
    "train.microbatch_size": "microbatch_size micro_batch_size microbatch device_batch_size "
    "per_device_batch_size per_device_train_batch_size device_train_microbatch_size "
    "grad_accum accumulation_steps gradient_accumulation_steps",
    "train.duration": "duration max_duration train_duration",
    'train.duration="N steps"': "steps max_steps num_steps train_steps total_steps num_train_steps "
    "training_steps iters iterations max_iters num_iterations",
    'train.duration="N epochs"': "epoch epochs num_epochs max_epochs num_train_epochs",
    'train.duration="N tokens"': "tokens max_tokens num_tokens train_tokens",
    "train.ema": "ema ema_decay",
    "data.seq_len": "seq_len seq_length seqlen sequence_length max_seq_len max_seq_length context "
    "context_length context_size block_size max_length max_sequence_length n_ctx",
    "data.root": "data dataset data_path data_dir data_root dataset_path train_data",
    "data.size": "image_size img_size resolution input_size",
    "data.num_workers": "workers num_workers",
    "model.d_model": "d_model hidden_size width dim n_embd embed_dim",
    "model.num_layers": "num_layers layers n_layers n_layer depth num_hidden_layers",
    "model.num_heads": "num_heads heads n_heads n_head num_attention_heads",
    "model.d_ff": "d_ff intermediate_size ffn_dim mlp_hidden_size",
    "model.vocab_size": "vocab_size",
    "model.dtype": "dtype precision mixed_precision bf16 fp16",
    "model.remat": "remat gradient_checkpointing activation_checkpointing",
    "mesh.fsdp": "device devices num_devices gpus num_gpus n_gpus fsdp",
    "mesh.tensor": "tp tensor_parallel tensor_parallel_size tensor",
    "eval.every": "eval_every eval_interval eval_steps eval_freq",
    "checkpoint.every": "save_every save_interval save_steps save_freq checkpoint_every",
    "checkpoint.keep_last": "keep_last save_total_limit keep_checkpoints",
    "monitor.every": "log_every log_interval log_steps logging_steps log_freq",
    "init_from": "init_from load load_path load_from pretrained resume resume_from init_checkpoint",
    "seed": "seed random_seed rng_seed",
    "--workdir": "output output_dir out_dir outdir save_dir save_folder work_dir run_dir log_dir",
}
"""Path in a config, or a flag -> its names in other programs, and its own without the path."""

_ALIASES = {name: path for path, names in _NAMES.items() for name in names.split()}


def alias(name: str, known: Iterable[str] | None = None) -> str | None:
    """Returns the flag for a name of another program; None where the name is not known.

    `known` are the paths of the config at hand. A field of the same name deeper in the same part
    stands in for a path that is not among them. None: the paths of the usual configs are taken.
    """
    target = _ALIASES.get(name.replace("-", "_").lower())
    if target is None or target.startswith("--"):
        return target
    path, equals, value = target.partition("=")
    if known is not None:
        part, *_, last = names = path.split(".")
        if last.isdecimal():
            last = ".".join(names[-2:])
        paths = list(known)
        deeper = (p for p in paths if p.startswith(f"{part}.") and p.endswith(f".{last}"))
        found = path if path in paths else next(deeper, None)
        if found is None:
            return None
        path = found
    return f"--config.{path}{equals}{value}"
