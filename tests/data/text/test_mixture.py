import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxpretrain.config.durations import resolve_durations
from jaxpretrain.config.errors import InputError
from jaxpretrain.config.overrides import apply_overrides, validate
from jaxpretrain.config.serialize import from_dict, to_dict
from jaxpretrain.data.order.order import HashedOrder, OlmoOrder
from jaxpretrain.data.order.permutations import Hashed, Shuffled
from jaxpretrain.data.prepare.prepare_text import PrepareText, prepare_text
from jaxpretrain.data.text.corpus import RawTokens
from jaxpretrain.data.text.mixture import Mixture, MixtureSource, MixtureStage, TrainingMixture
from jaxpretrain.data.text.text import TextData
from jaxpretrain.data.token_files.manifest import load_manifest
from jaxpretrain.data.token_files.masks import InstanceFilter

SEQ_LEN, SIZES = 4, {"a": 50, "b": 30, "c": 20}
VOCAB = {"tokens": 1000}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """Raw files whose tokens say what they are: example e of a source holds e four times."""
    folder = tmp_path_factory.mktemp("sources")
    for name, size in SIZES.items():
        (folder / name).mkdir()
        np.repeat(np.arange(size), SEQ_LEN).astype("<u2").tofile(folder / name / "0.npy")
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    sources = {n: MixtureSource(root=str(folder / n), weight=w) for n, w in weights.items()}
    stage = MixtureStage(at=35, weights={"a": 0.1, "b": 0.0, "c": 0.9})
    return Mixture(sources=sources, stages=(stage,), window=10, seq_len=SEQ_LEN)


def _open(config: Mixture, seed: int = 0) -> TrainingMixture:
    return config.open(seed=seed, limits=VOCAB)


def _read(data: TrainingMixture, samples: np.ndarray) -> list[tuple[str, int]]:
    """(source, example) of each sample."""
    batch = data.batch(samples)
    assert (batch["tokens"] == batch["tokens"][:, :1]).all()
    examples = batch["tokens"][:, 0].tolist()
    names = list(data.parts)
    return [(names[s], e) for s, e in zip(batch["source"], examples, strict=True)]


def _of(name: str, samples: list[tuple[str, int]]) -> list[int]:
    return [example for source, example in samples if source == name]


def test_specs_are_what_batches_hold(mixture: Mixture):
    batch = _open(mixture).batch(np.arange(7))
    spec = mixture.example_spec() | mixture.extra_spec()
    assert {n: (x.shape[1:], str(x.dtype)) for n, x in batch.items()} == spec
    assert mixture.units_per_example() == ("tokens", SEQ_LEN)


def test_text_alone_has_no_sources(mixture: Mixture):
    text = TextData(root=mixture.sources["a"].root, seq_len=SEQ_LEN)
    data = text.open(seed=0, limits=VOCAB)
    assert (text.source_names(), text.extra_spec()) == ((), {})
    assert data.epochs(3 * data.num_examples) == {"epochs": 3.0}
    assert list(data.batch(np.arange(2))) == ["tokens"]


def test_proportions_are_exact_in_every_window_and_change_at_the_stage(mixture: Mixture):
    source = _open(mixture).batch(np.arange(135))["source"]
    for start in (0, 10, 20):
        np.testing.assert_array_equal(np.bincount(source[start : start + 10]), [5, 3, 2])
    for start in range(35, 135, 10):
        np.testing.assert_array_equal(np.bincount(source[start : start + 10]), [1, 0, 9])


def test_a_stage_begins_at_its_step(mixture: Mixture):
    """Given in steps, it is the same for every way to write it."""
    opened = []
    for at in ("5 steps", "35 examples", "140 tokens", 35):
        stages = (replace(mixture.stages[0], at=at),)
        config = resolve_durations(
            replace(mixture, stages=stages), batch_size=7, tokens_per_example=SEQ_LEN
        )
        opened.append(_open(config).batch(np.arange(100))["source"])
    for source in opened:
        np.testing.assert_array_equal(source, opened[0])


@pytest.mark.parametrize("order", [OlmoOrder(), HashedOrder()])
def test_every_source_is_read_in_epochs_without_gap_or_repeat(mixture: Mixture, order):
    samples = _read(_open(replace(mixture, order=order)), np.arange(400))
    for name, size in SIZES.items():
        own = _of(name, samples)
        epochs = [own[start : start + size] for start in range(0, len(own) - size, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(_of("c", samples)) > 10 * SIZES["c"]


def test_batches_do_not_depend_on_how_they_are_divided(mixture: Mixture):
    """Over steps, among hosts, or by restarts."""
    whole = _open(mixture).batch(np.arange(96))
    for divided in (np.split(np.arange(96), 8), [np.arange(96)[rank::3] for rank in range(3)]):
        for samples in divided:
            part = _open(mixture).batch(samples)
            for name in whole:
                np.testing.assert_array_equal(part[name], whole[name][samples])


def test_adding_a_source_and_other_weights_leave_the_orders(mixture: Mixture):
    few = {name: mixture.sources[name] for name in ("c", "a")}
    few["a"] = replace(few["a"], weight=3.0)
    samples = _read(_open(mixture), np.arange(200))
    for name in few:
        own = _of(name, _read(_open(replace(mixture, sources=few, stages=())), np.arange(200)))
        shared = min(len(own), len(_of(name, samples)))
        assert own[:shared] == _of(name, samples)[:shared]


def test_orders_differ_between_sources_and_seeds(mixture: Mixture):
    same = {name: mixture.sources["a"] for name in ("a", "b")}
    config = replace(mixture, sources=same, stages=())
    orders = [
        _of(name, _read(_open(config, seed), np.arange(100))) for seed in (0, 1) for name in same
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len(set(map(tuple, orders))) == 4


def test_epochs_count_each_source(mixture: Mixture):
    data = _open(mixture)
    samples = _read(data, np.arange(217))
    for num_samples in (0, 1, 34, 35, 36, 100, 217):
        expected = {
            f"{name}/epochs": len(_of(name, samples[:num_samples])) / size
            for name, size in SIZES.items()
        }
        assert data.epochs(num_samples) == pytest.approx(expected)


def test_an_epoch_ends_before_the_first_repeat(mixture: Mixture):
    for stages in (mixture.stages, ()):
        data = _open(replace(mixture, stages=stages))
        samples = _read(data, np.arange(data.num_examples + 1))
        assert len(set(samples[:-1])) == data.num_examples
        assert samples[-1] in samples[:-1]


def test_a_declared_number_of_examples_is_verified(mixture: Mixture):
    num_examples = _open(mixture).num_examples
    assert _open(replace(mixture, num_examples=num_examples)).num_examples == num_examples
    with pytest.raises(InputError, match=rf"declares 7 .* set data\.num_examples={num_examples}"):
        _open(replace(mixture, num_examples=7))


def test_the_fingerprint_is_of_content_and_proportions(mixture: Mixture, tmp_path: Path):
    def weighted(**weights: float) -> Mixture:
        sources = {n: replace(mixture.sources[n], weight=w) for n, w in weights.items()}
        return replace(mixture, sources=sources)

    moved = Path(shutil.copytree(mixture.sources["a"].root or "", tmp_path / "moved"))
    at_home = {**mixture.sources, "a": replace(mixture.sources["a"], root=str(moved))}
    same = [mixture, replace(mixture, sources=at_home), weighted(a=5, b=3, c=2)]
    same.append(replace(mixture, window=20))
    assert len({_open(config).fingerprint for config in same}) == 1
    renamed = {("d" if n == "a" else n): s for n, s in mixture.sources.items()}
    others = [
        weighted(a=0.4, b=0.4, c=0.2),
        replace(mixture, stages=()),
        replace(mixture, stages=(replace(mixture.stages[0], at=36),)),
        replace(mixture, window=7, stages=()),
        replace(mixture, order=HashedOrder()),
        replace(mixture, sources=renamed, stages=()),
    ]
    assert len({_open(config).fingerprint for config in [mixture, *others]}) == 7


def test_it_describes_itself_in_one_line(mixture: Mixture):
    line = _open(mixture).describe()
    assert "\n" not in line
    for fact in ("a 0.5, b 0.3, c 0.2", "from sample 35: a 0.1, b 0, c 0.9", "every 10 samples"):
        assert fact in line


def test_flags_reach_every_weight_and_configs_are_kept(mixture: Mixture):
    flags = [("sources.b.weight", "0.25"), ("stages.0.at", "3 steps"), ("stages.0.weights.b", "1")]
    changed = apply_overrides(mixture, flags)
    assert changed.sources["b"].weight == 0.25
    assert changed.stages[0] == MixtureStage("3 steps", {"a": 0.1, "b": 1.0, "c": 0.9})
    assert from_dict(Mixture, to_dict(changed)) == changed


def _with_weights(mixture: Mixture, *weights: float) -> Mixture:
    pairs = zip(mixture.sources.items(), weights, strict=True)
    sources = {name: replace(source, weight=weight) for (name, source), weight in pairs}
    return replace(mixture, sources=sources)


def test_impossible_mixtures_are_errors(mixture: Mixture):
    (stage,) = mixture.stages
    source = mixture.sources["a"]

    def staged(*changes: dict) -> Mixture:
        return replace(mixture, stages=tuple(replace(stage, **change) for change in changes))

    for config, message in [
        (Mixture(), "data.sources is empty"),
        (replace(mixture, sources={"a/b": source}), "'a/b' is no name for a source"),
        (_with_weights(mixture, 1, -1, 1), "data.sources.b.weight=-1: must be 0 or more"),
        (_with_weights(mixture, 0, 0, 0), "data.sources: all weights are 0"),
        (staged({"weights": {"a": 0, "b": 0, "c": 0}}), r"data.stages.0: all weights are 0"),
        (staged({"weights": {"a": 1, "b": 1, "x": 1}}), r"data.stages.0.weights.x: no such source"),
        (staged({"weights": {"a": 1, "b": 1}}), r"data.stages.0.weights: names no weight for c"),
        (staged({"at": 0}), "data.stages.0.at: begins with sample 0, not after"),
        (staged({"at": 9}, {"at": 9}), "data.stages.1.at: begins with sample 9, not after"),
        (replace(_with_weights(mixture, 1, 0, 1)), "data.sources.b.weight is 0, and no stage"),
        (replace(mixture, window=0), "data.window=0: must be from 1 to 100000"),
        (replace(mixture, tokenizer_of="d"), "data.tokenizer_of is 'd', no source"),
        (replace(mixture, tokenizer_of="a"), "a is a directory of raw files"),
        (replace(mixture, seq_len=1), "data.seq_len=1: must be from 2"),
        (replace(mixture, sources={"a": MixtureSource()}, stages=()), "data.sources.a.root is not"),
        (replace(mixture, sources={"a": MixtureSource("/x")}, stages=()), r"config.data.sources.a"),
    ]:
        with pytest.raises(InputError, match=message) as error:
            validate(config, "data")
            _open(config)
        assert "\n" not in str(error.value)


def test_a_window_too_small_names_one_that_is_enough(mixture: Mixture):
    small = replace(_with_weights(mixture, 0.97, 0.01, 0.02), stages=())
    with pytest.raises(InputError, match="one sample of b, .* set data.window to at least 100"):
        _open(small)
    assert _open(replace(small, window=100)).batch(np.arange(100))["source"].max() == 2


def test_sources_need_one_tokenizer(prepared: Path, spec: PrepareText, tmp_path: Path):
    """Their own ones differ; `tokenizer_of` gives one to all that would train their own."""
    limits = {"tokens": 400}
    (tmp_path / "other.txt").write_text("quite another text with words of its own " * 50)
    other = PrepareText(files=(str(tmp_path / "other.txt"),), validation_fraction=0, vocab_size=300)
    own = tmp_path / "own"
    prepare_text(other, own, workers=1)
    tiny = MixtureSource(root=str(prepared))
    config = Mixture({"tiny": tiny, "own": MixtureSource(root=str(own))}, seq_len=SEQ_LEN)
    with pytest.raises(InputError, match=r"tiny and own have different .* data.tokenizer_of=tiny"):
        config.open(seed=0, limits=limits)
    given = Mixture(
        {"other": MixtureSource(prepare=other), "tiny": tiny}, tokenizer_of="tiny", seq_len=SEQ_LEN
    )
    data = given.open(seed=0, limits=limits)
    sha256 = load_manifest(prepared).tokenizer.sha256
    roots = [part.corpus.root for part in data.parts.values()]
    assert [load_manifest(root).tokenizer.sha256 for root in roots] == [sha256] * 2
    assert given.source_names() == tuple(data.parts) == ("other", "tiny")
    assert data.tokenizer_path == data.parts["other"].tokenizer_path


def test_evaluation_sets_are_named_by_their_sources(prepared: Path):
    first = MixtureSource(root=str(prepared))
    sources = {"x": first, "y": replace(first, validation_split=None), "z": first}
    evals = Mixture(sources, seq_len=SEQ_LEN).open_evals(limits={"tokens": 400})
    assert [evaluation.name for evaluation in evals] == ["x", "z"]
    assert evals[0].target_bytes(evals[0].batch(np.arange(2))) is not None


@pytest.mark.parametrize(("order", "kind"), [(OlmoOrder(), Shuffled), (HashedOrder(), Hashed)])
def test_the_order_within_sources_is_the_one_asked_for(mixture: Mixture, order, kind):
    data = _open(replace(mixture, order=order))
    assert {type(part.order.permutations) for part in data.parts.values()} == {kind}


def test_samples_are_located_and_found(mixture: Mixture):
    """Within the first 200 samples, epochs and stages included."""
    data, samples = _open(mixture), np.arange(200)
    read = _read(data, samples)
    places = data.locate(samples)
    assert [(place.source, place.example) for place in places] == read
    assert [place.sample for place in places] == samples.tolist()
    assert all(
        place.tokens == (SEQ_LEN * place.example, SEQ_LEN * (place.example + 1)) for place in places
    )
    for source, example in (("a", 0), ("a", 49), ("c", 7)):
        expected = [k for k, found in enumerate(read) if found == (source, example)]
        assert list(data.find(example, 200, source)) == expected


@pytest.mark.parametrize("source", [None, "aa"])
def test_an_example_of_a_mixture_needs_its_source(mixture: Mixture, source: str | None):
    with pytest.raises(InputError, match="SOURCE:INDEX, of a, b, c"):
        list(_open(mixture).find(3, 100, source))


def test_masks_of_one_source_leave_the_others_alone(mixture: Mixture, tmp_path: Path):
    np.zeros(SEQ_LEN * SIZES["b"], np.uint8).tofile(tmp_path / "0.npy")
    masked = replace(mixture.sources["b"], raw=RawTokens(label_mask=str(tmp_path)))
    config = replace(mixture, sources={**mixture.sources, "b": masked})
    batch = _open(config).batch(np.arange(35))
    assert config.extra_spec()["mask"] == ((SEQ_LEN,), "bool")
    assert batch["mask"].dtype == bool
    np.testing.assert_array_equal(batch["mask"], np.repeat(batch["source"] != 1, 4).reshape(-1, 4))


def test_the_filter_judges_all_sources(mixture: Mixture):
    """Every example is one token four times, so a pattern of three is too much."""
    config = replace(mixture, instance_filter=InstanceFilter(max_count=3))
    assert not _open(config).batch(np.arange(35))["mask"].any()
    config = replace(mixture, instance_filter=InstanceFilter(max_count=5))
    assert _open(config).batch(np.arange(35))["mask"].all()


def test_one_list_of_indices_for_several_sources_is_refused(mixture: Mixture):
    with pytest.raises(InputError, match=r"data\.order\.global_indices=none"):
        _open(replace(mixture, order=OlmoOrder(global_indices="indices.npy")))


def test_an_epoch_of_each_source_is_cut_as_the_order_says(mixture: Mixture):
    whole = _open(mixture)
    cut = _open(replace(mixture, order=OlmoOrder(epoch_multiple=4)))
    for name, part in cut.parts.items():
        assert part.num_examples == whole.parts[name].num_examples // 4 * 4
