"""How settings follow the width and the depth of a model: muP and CompleteP, in one table.

Settings are tuned at a base width and depth. A model that is m times as wide and k times as deep
takes the same settings, each multiplied as the table says (mup: k counts as 1):

| parameters | deviation | product | rate | rate of Muon | weight decay | epsilon |
| --- | --- | --- | --- | --- | --- | --- |
| input: embedding, patches, tokens, norms, biases | 1 | 1 | 1 | 1 | 1 | 1 / m |
| hidden: matrices of layers | m^-1/2 | 1 | 1 / m | m^-1/2 | 1 / rate | 1 / m |
| output: the head, the features of the encoder for the decoder | 1 | 1 / m | 1 | 1 | 1 | 1 / m |
| fixed: all of which no side grows | 1 | 1 | 1 | 1 | 1 | 1 |

In layers, epsilon is also divided by k, and what a layer adds to the residual stream is multiplied
by 1 / k. Deviations are relative to those at the base width and depth. The head size stays, and the
number of heads grows, so that attention logits are not multiplied.

Sources: Yang et al., Tensor Programs V (arXiv 2203.03466), table 8, for Adam and Lion, whose
updates have entries of one size. Dey et al., CompleteP (arXiv 2505.01618), table 1 with alpha = 1,
for depth, weight decay and epsilon. Yang, Simon and Bernstein, A Spectral Condition for Feature
Learning (arXiv 2310.17813), for Muon: its updates have singular values of one size, which with the
scale adamw_rms grow as m^1/2; with the scale spectral they do not grow, and the rate stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jaxpretrain.config.errors import InputError
from jaxpretrain.config.ranges import Depth, Width
from jaxpretrain.models.choices import require_divisible

Role = Literal["input", "hidden", "output", "fixed"]
"""The sides of a parameter that grow with the width: its outputs, both, its inputs, none."""


class Factors(NamedTuple):
    """The factors of the settings of one kind of parameter."""

    deviation: float = 1.0
    """The factor of the initial standard deviation at the base width and depth."""
    product: float = 1.0
    """The factor of what the parameter computes."""
    rate: float = 1.0
    """The factor of the learning rate where the entries of updates have one size (AdamW, Lion)."""
    muon_rate: float = 1.0
    """The factor of the learning rate where singular values have the size of the square root of the
    width (Muon with the scale adamw_rms)."""
    epsilon: float = 1.0
    """The factor of Adam's epsilon, as of the gradients."""


FactorsOf = Callable[[str], Factors]
"""A function from the name of a parameter to its factors."""


@dataclass(frozen=True)
class Growth:
    """The size of a model relative to the one that its settings are meant for."""

    width: float = 1.0
    """The width in multiples of the base width."""
    depth: float = 1.0
    """The number of layers in multiples of the base depth."""

    def factors(self, role: Role, *, in_layer: bool = False) -> Factors:
        """Returns the factors of a kind of parameter; `in_layer`: it is part of a layer."""
        if role == "fixed":
            return Factors()
        m = self.width
        epsilon = 1 / (m * self.depth) if in_layer else 1 / m
        if role == "hidden":
            return Factors(deviation=m**-0.5, rate=1 / m, muon_rate=m**-0.5, epsilon=epsilon)
        return Factors(product=1 / m if role == "output" else 1.0, epsilon=epsilon)

    @property
    def branch(self) -> float:
        """The factor of what a layer adds to the residual stream."""
        return 1 / self.depth

    def base(self, size: int) -> float:
        """Returns the size of a growing dimension at the base width; without growth, an int."""
        return size if self.width == 1 else size / self.width


BASE = Growth()
"""A model of the base size."""


@dataclass(frozen=True)
class Scaled:
    """The fields of models whose settings may follow their size."""

    scaling: Literal["standard", "mup", "completep"] = "standard"
    """The settings that follow the width (mup), or width and depth (completep), so that those tuned
    at base_width and base_depth serve all sizes: initial deviations, factors of products, learning
    rates, weight decay, epsilon. standard: all are taken as they are."""
    base_width: Width | None = None
    """The d_model that the settings are meant for, with scaling=mup or completep. Heads have the
    same size there, so that their number grows."""
    base_depth: Depth | None = None
    """The num_layers that the settings are meant for, with scaling=completep."""

    @property
    def growth(self) -> Growth:
        """The size of the model relative to the one that its settings are meant for."""
        raise NotImplementedError

    def describe_base(self) -> str:
        """Returns the fields of scaling that are set, as they stand on the command line."""
        base = {"base_width": self.base_width, "base_depth": self.base_depth}
        given = [f", model.{name}={value}" for name, value in base.items() if value is not None]
        return f"model.scaling={self.scaling}{''.join(given)}"

    def growth_of(self, d_model: int, num_heads: int, num_layers: int) -> Growth:
        """Returns the size of a model relative to its base.

        Raises:
          InputError: the base is missing, has no effect, or has no whole number of heads.
        """
        needed = {
            "base_width": self.scaling != "standard",
            "base_depth": self.scaling == "completep",
        }
        for name, is_needed in needed.items():
            value = getattr(self, name)
            if is_needed and value is None:
                raise InputError(f"model.scaling={self.scaling} needs model.{name}")
            if value is not None and not is_needed:
                others = "completep" if name == "base_depth" else "mup or completep"
                raise InputError(
                    f"model.{name}={value} has no effect with model.scaling={self.scaling}; set "
                    f"model.scaling to {others}, or model.{name} to none"
                )
        if self.scaling == "standard":
            return BASE
        require_divisible((d_model, num_heads, "model.d_model by model.num_heads"))
        width, depth = self.base_width or d_model, self.base_depth or num_layers
        head_dim = d_model // num_heads
        if width % head_dim:
            raise InputError(
                f"model.base_width={width} is no multiple of the head size {head_dim} "
                "(d_model / num_heads), which stays while the number of heads grows"
            )
        return Growth(d_model / width, num_layers / depth)


def describe(scaled: Scaled, growth: Growth, kinds: dict[Role, str]) -> list[str]:
    """Returns lines for start-up with the factors in use; `kinds` names the parameters by role."""
    if scaled.scaling == "standard":
        return []
    size = f"{growth.width:g} times the width {scaled.base_width}"
    if scaled.base_depth is not None:
        size += f", {growth.depth:g} times the depth {scaled.base_depth}"
    lines = [
        f"scaling {scaled.scaling}: {size}; attention logits x 1 (the head size stays), "
        f"residual branches x {growth.branch:.4g}"
    ]
    for role, parameters in kinds.items():
        one = growth.factors(role, in_layer=role == "hidden")
        muon = in_layers = ""
        if one.muon_rate != one.rate:
            rate = f"learning rate x {one.muon_rate:.4g}, weight decay x {1 / one.muon_rate:.4g}"
            muon = f" (Muon: {rate}; with scale=spectral both x 1)"
        if role == "input" and growth.depth != 1:  # norms and biases are in layers too
            inner = growth.factors(role, in_layer=True)
            in_layers = f" (in layers {inner.epsilon:.4g})"
        lines.append(
            f"{parameters}: deviation x {one.deviation:.4g}, product x {one.product:.4g}, epsilon "
            f"x {one.epsilon:.4g}{in_layers}, learning rate x {one.rate:.4g}, weight decay x "
            f"{1 / one.rate:.4g}{muon}"
        )
    return lines
