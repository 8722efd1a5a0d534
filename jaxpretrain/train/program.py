"""The program of a run: the experiment on given devices, before any data or memory.

Training, planning and benchmarks all start from the same `Program`, so what is planned or timed
is what trains.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import jax
from jax.extend.backend import get_compile_options

from jaxpretrain.config.errors import InputError, nearest
from jaxpretrain.data.contract import EvalSet, TrainingData
from jaxpretrain.devices.chips import GIB, compiler_options
from jaxpretrain.devices.memory import Device, memory_limit
from jaxpretrain.display.wording import count_of
from jaxpretrain.evals.contract import Setting
from jaxpretrain.models.contract import Batch, Model, Params
from jaxpretrain.optim.optimizers import Optimizer
from jaxpretrain.parallel.mesh import Layout, Mesh, sharded_bytes
from jaxpretrain.train.experiment import Experiment, Resolved, num_microbatches
from jaxpretrain.train.step import TrainState, abstract_state, make_init, make_train_step

_COMPILE_SECONDS = 2e-3
"""Seconds of compilation per traced operation: 1.3e-3 to 5e-3 on two CPU cores."""

_FAILING_PASS = "while-loop-all-reduce-code-motion"
"""A pass of XLA for TPUs that fails on the gradient of a head in bfloat16 that microbatches add up
(libtpu 0.0.42). A step that it fails on is compiled without it."""

Probe = Callable[[Params, Batch], dict[str, jax.Array]]
"""A function from parameters and the batch of a step to arrays [layers] by name."""


@dataclass(frozen=True)
class Program:
    """Model, optimizer and layout, with the abstract state and batch of the training step."""

    experiment: Resolved
    layout: Layout
    model: Model
    optimizer: Optimizer
    num_microbatches: int
    init: Callable[[jax.typing.ArrayLike], TrainState]  # from a seed to a fresh state
    state: TrainState  # jax.ShapeDtypeStruct leaves, sharded
    batch: dict[str, jax.ShapeDtypeStruct]  # sharded

    @property
    def microbatch_size(self) -> int:
        """Number of examples that a data-parallel device computes at a time."""
        share = self.experiment.train.batch_size // self.layout.num_data
        return share // self.num_microbatches

    def compile(self, options: Mapping[str, bool | str | int] | None = None) -> jax.stages.Compiled:
        """Compiles the training step, (state, batch) -> (state, metrics). The state is donated.

        `options` of the compiler come on top of those of the experiment, and these on top of those
        of the device. The result refuses other shapes and layouts, so nothing is ever compiled a
        second time. InputError: the compiler does not know an option, or does not take its value.
        """
        lowered, chosen = self.traced_step.lower(), self.options(options)
        try:
            return lowered.compile(compiler_options=chosen)
        except jax.errors.JaxRuntimeError as error:
            if _FAILING_PASS.replace("-", "_") in str(error):
                given = chosen.get("xla_disable_hlo_passes")
                passes = f"{given},{_FAILING_PASS}" if given else _FAILING_PASS
                without = chosen | {"xla_disable_hlo_passes": passes}
                return lowered.compile(compiler_options=without)
            if "compile option" in str(error) or "setting option" in str(error):
                unknown = re.search(r"No such compile option: '([^']*)'", str(error))
                hint = nearest(unknown[1], _known_options()) if unknown else ""
                raise InputError(
                    f"train.compiler_options: {error}{'.' if hint else ''}{hint}"
                ) from error
            raise

    def options(self, more: Mapping[str, bool | str | int] | None = None) -> dict[str, Any]:
        """Returns the compiler's options of the device, the experiment's on top, then more."""
        device = self.layout.mesh.devices.flat[0]
        own = self.experiment.train.compiler_options
        return {**compiler_options(device.device_kind), **own, **(more or {})}

    @cached_property
    def traced_step(self) -> jax.stages.Traced:
        """The traced training step."""
        train, sources = self.experiment.train, self.experiment.data.source_names()
        step = make_train_step(
            self.model, self.optimizer, self.layout, self.num_microbatches, train, sources
        )
        shardings = jax.tree.map(lambda s: s.sharding, self.state)
        # Metrics lie on all devices, so that any process can read them.
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(shardings, shardings.step))
        return jitted.trace(self.state, self.batch)

    def compile_seconds(self) -> float:
        """Returns about how long the step takes to compile where it was not compiled before."""
        return _COMPILE_SECONDS * _num_operations(self.traced_step.jaxpr)

    def compile_probe(self) -> Probe:
        """Compiles the model's signals for the first example of each data-parallel device.

        This is a program of its own, so that the training step does not depend on it.
        """
        layout, model = self.layout, self.model

        def probe(params: Params, batch: Batch) -> dict[str, jax.Array]:
            examples = {
                name: layout.constrain_batch(x.reshape(layout.num_data, -1, *x.shape[1:])[:, 0])
                for name, x in batch.items()
            }
            return model.signals(params, examples, jax.random.key(0))

        jitted = jax.jit(probe, out_shardings=layout.replicated)
        return jitted.lower(self.state.params, self.batch).compile()

    def create_state(self, seed: int | None = None) -> TrainState:
        """Creates a fresh state from a seed, by default the experiment's; sharded from birth."""
        shardings = jax.tree.map(lambda s: s.sharding, self.state)
        return jax.jit(self.init, out_shardings=shardings)(
            self.experiment.seed if seed is None else seed
        )

    def setting(self, data: TrainingData | None, eval_sets: Sequence[EvalSet]) -> Setting:
        """Returns the parts of this program that evaluators are built from, with its opened data.

        An evaluation batch is a training microbatch over all devices.
        """
        eos_id = None if data is None else data.eos_id
        return Setting(
            model=self.model,
            layout=self.layout,
            params=self.state.params,
            source=self.experiment.data,
            eval_sets=eval_sets,
            batch_size=self.experiment.train.batch_size // self.num_microbatches,
            tokenizer_path=None if data is None else data.tokenizer_path,
            end_ids=() if eos_id is None else (eos_id,),
        )

    def describe(self) -> dict[str, list[str]]:
        """Returns facts about what is really active, by their subject, for start-up."""
        experiment, train = self.experiment, self.experiment.train
        num_data = self.layout.num_data
        unit, per_example = self.model.units_per_example()
        num_params = sum(p.size for p in jax.tree.leaves(self.state.params))
        state_bytes = sharded_bytes(jax.tree.leaves(self.state))
        undivided = self.layout.undivided(self.model.axes(), self.state.params)
        schedule = experiment.optim.schedule
        num_steps = experiment.timeline.num_steps
        peak = schedule.peak * experiment.optim.rate_multiple(train.batch_size)
        phases = ", ".join(f"{name} from step {at:,}" for name, at in schedule.phases(num_steps))
        facts = {
            "devices": [self.layout.describe()],
            "model": [
                *self.model.describe(),
                f"{num_params:,} parameters, {state_bytes / 2**20:,.0f} MiB of state per device",
            ],
            "batch": [
                f"{train.batch_size} = {count_of(num_data, 'device')} x "
                f"{count_of(self.num_microbatches, 'microbatch')} x "
                f"{self.microbatch_size}",
                f"{train.batch_size * per_example:,} {unit} per step, {num_steps:,} steps, "
                f"{num_steps * train.batch_size * per_example:,} {unit}",
            ],
            "optimizer": [
                experiment.optim.describe(train.batch_size),
                f"learning rate {type(schedule).__name__}: peak {peak:g}, {phases}",
            ],
        }
        if undivided:
            facts["model"].append(
                f"not sharded, because the mesh does not divide them: {', '.join(undivided)}"
            )
        if phases.startswith("warmup") and "," not in phases:
            facts["warning"] = ["the run ends inside its warm-up, before the learning rate peaks"]
        return facts


def _known_options() -> list[str]:
    """Returns the names of XLA's options, without those that only compilers for TPUs have."""
    options = get_compile_options(num_replicas=1, num_partitions=1)
    # What is read of it is valid only as long as the name it is read from.
    built = options.executable_build_options
    return re.findall(r"^(xla_\w+):", str(built.debug_options), re.MULTILINE)


def _num_operations(jaxpr: Any) -> int:
    """Returns the operations of a traced function and of the functions that it calls."""
    inner = (x for eqn in jaxpr.eqns for value in eqn.params.values() for x in _as_tuple(value))
    return len(jaxpr.eqns) + sum(_num_operations(x) for x in inner if hasattr(x, "eqns"))


def _as_tuple(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def build_model(experiment: Experiment, layout: Layout) -> Model:
    """Builds the experiment's model for the devices of a layout."""
    return experiment.model.build(
        experiment.data.example_spec(),
        platform=layout.mesh.devices.flat[0].platform,
        constrain=layout.constrain,
        shard=layout.shard,
        by_rows=layout.by_rows,
    )


def chosen_mesh(experiment: Experiment) -> Mesh:
    """Returns the arrangement of the devices; InputError where it is still `auto`."""
    if isinstance(experiment.mesh, str):
        raise InputError("mesh=auto: jaxpretrain.main and .plan choose; set it")
    return experiment.mesh


def make_program(experiment: Resolved, devices: Sequence[Device]) -> Program:
    """Binds an experiment to devices, real or described; InputError where sizes do not fit."""
    layout = Layout(chosen_mesh(experiment).build(devices))
    microbatches = num_microbatches(experiment.train, layout.mesh.devices.shape)
    data = experiment.data
    model = build_model(experiment, layout)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    batch_size = experiment.train.batch_size
    num_steps = experiment.timeline.num_steps
    optimizer = experiment.optim.build(num_steps, batch_size, shapes, model.factors)
    batch = model.batch_spec(batch_size) | {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype)
        for name, (shape, dtype) in data.extra_spec().items()
    }
    init = make_init(model, optimizer.transform, experiment.train)
    return Program(
        experiment=experiment,
        layout=layout,
        model=model,
        optimizer=optimizer,
        num_microbatches=microbatches,
        init=init,
        state=abstract_state(model, layout, init),
        batch=layout.batch_spec(batch),
    )


@dataclass(frozen=True)
class Memory:
    """The bytes of one device at the peak of the step, by their use."""

    parameters: int
    optimizer: int
    """Moments, and the average of the weights."""
    gradients: int
    """A float32 number for each parameter; two where the microbatch's are added to a sum."""
    activations: int
    """Forward and backward pass, with gathered weights and communication."""
    other: int
    """The batch, counters and the program itself."""

    @property
    def total(self) -> int:
        """All bytes together."""
        return sum(asdict(self).values())

    def describe(self) -> str:
        """Returns one line, in GiB."""
        listed = ", ".join(f"{part} {size / GIB:.2f}" for part, size in asdict(self).items())
        return f"{self.total / GIB:.2f} GiB per device ({listed})"


def state_bytes(program: Program) -> tuple[int, int]:
    """Returns the bytes of a device for parameters, and for moments with the average."""
    state = program.state
    parameters = sharded_bytes(jax.tree.leaves(state.params))
    return parameters, sharded_bytes(jax.tree.leaves((state.optimizer, state.ema)))


def num_gradients(program: Program) -> int:
    """Returns the number of gradients that a parameter has at a time."""
    return 2 if program.num_microbatches > 1 else 1  # the sum, and that of one microbatch


def measured(program: Program, compiled: jax.stages.Compiled) -> Memory:
    """Returns the memory of the compiled step of a program, as the compiler planned it."""
    stats: Any = compiled.memory_analysis()
    parameters, optimizer = state_bytes(program)
    arguments = stats.argument_size_in_bytes
    if program.layout.mesh.devices.flat[0].platform == "tpu":
        # Temporaries are counted one by one there; the peak knows which of them share memory.
        working = stats.peak_memory_in_bytes - arguments
    else:
        grown = stats.output_size_in_bytes - stats.alias_size_in_bytes
        working = stats.temp_size_in_bytes + grown
    gradients = min(parameters * num_gradients(program), working)
    return Memory(
        parameters=parameters,
        optimizer=optimizer,
        gradients=gradients,
        activations=working - gradients,
        other=arguments - parameters - optimizer + stats.generated_code_size_in_bytes,
    )


def require_fit(program: Program, compiled: jax.stages.Compiled) -> Memory:
    """Returns the memory of a step; InputError, before there is any state, if it does not fit."""
    memory = measured(program, compiled)
    limit = memory_limit(program.layout.mesh.local_devices[0])
    if limit is not None and memory.total > limit:
        raise InputError(
            f"the step does not fit: it takes {memory.describe()} of the {limit / GIB:.2f} GiB "
            f"there are, with train.microbatch_size={program.microbatch_size} and "
            f"model.remat={program.experiment.model.remat}; --config.train.microbatch_size=auto "
            "and --config.model.remat=auto choose what fits, python -m jaxpretrain.plan explains"
        )
    return memory
