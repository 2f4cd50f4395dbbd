"""A family's hyperparameters as frozen data: units in the names, a reason beside each default.

Time is counted in kimg (a thousand real images shown), so that a batch size can change without changing the schedule.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Objective = Literal[
    "minimax", "non_saturating", "least_squares", "hinge", "wasserstein", "wasserstein_gp", "relativistic", "elbo"
]


READ_OUTSIDE = frozenset({
    "name", "notes", "size", "channels", "classes", "latent_dim", "imitation_kimg", "head_start_kimg", "optimiser",
    "learning_rate", "discriminator_learning_rate", "beta1", "beta2", "decay_from", "decay_to", "batch_size",
    "microbatch", "total_kimg", "ema_kimg", "ema_rampup", "mirror", "precision",
    "clip",
})  # fmt: skip
"""What trainers and data sets read, whichever the family."""
READ_OF_PAIRS = frozenset({"scale", "degradation", "load_size", "shrink", "downsamplings", "rotate"})
"""What they read, too, of a family of images from images."""


class RecipeError(ValueError):
    """A recipe's field is unknown, of the wrong type, or does not go with another."""


@dataclass(frozen=True)
class Recipe:
    """What a run of one family is made of. Sizes in pixels, learning rates per optimiser step."""

    name: str = "modern"
    """`paper` as published, `modern` what we would use today."""
    size: int = 32
    """Side of the square images, px. Set from the command line or the data set."""
    channels: int = 3
    """1 grey, 3 RGB. The images decide it for families that draw from latents, where it is not set outright."""
    classes: int = 0
    """Number of classes; 0 is unconditional. Set from the data set."""

    latent_dim: int = 64
    """Length of z. 64 is plenty below 64 px; a longer one costs nothing but is harder to explore."""
    architecture: str = "conv"
    """Which nets the family builds, where it has several (`conv`, `mlp`)."""
    generator_width: int = 48
    """Channels at the highest resolution (units of the first hidden layer for an MLP); doubles with every halving."""
    discriminator_width: int = 48
    """As `generator_width`. About equal: a much stronger discriminator only needs a larger penalty."""
    max_channels: int = 256
    """Upper bound on the doubling: the low resolutions hold most parameters, little of the detail."""
    residual_blocks: int = 0
    """3x3 convolutions added after each upsampling of a convolutional G; nearly the identity at first."""
    palette: int = 0
    """Colours of a palette drawn from z, which every pixel mixes, instead of free colours; 0 is off. For drawings,
    whose flat areas then come out flat: docs/decisions/0006."""
    generator_norm: Literal["batch", "instance", "none"] = "batch"
    """Batch norm speeds a shallow generator up by far; at export its statistics are constants. Instance norm (image to
    image only) reads the whole picture, which a server can then not cut into tiles; `none` keeps every size exact."""
    discriminator_norm: Literal["batch", "instance", "spectral", "none"] = "none"
    """Batch norm in D makes rows depend on each other, which gradient penalties do not allow. Spectral norm
    (arXiv:1802.05957) bounds D's slope at little cost; patch discriminators only."""
    minibatch_stddev: bool = True
    """Let D see how varied its batch is (arXiv:1710.10196): the cheapest remedy for collapse."""
    dropout: float = 0.0
    """Of D's hidden units; the remedy of 2014, superseded by penalties."""
    weight_std: float = 0.0
    """Initialise weights from N(0, std); 0 keeps torch's defaults. DCGAN's paper: 0.02."""

    objective: Objective = "non_saturating"
    """The adversarial loss; see losses.py. `elbo`, a VAE's lower bound, has no adversary."""
    r1_gamma: float = 0.0
    """Weight of the squared gradient norm at real images (arXiv:1801.04406). Raise it when D wins; 0.01 to 1."""
    r2_gamma: float = 0.0
    """The same at generated images. The relativistic objective needs both (arXiv:2501.05441)."""
    gp_lambda: float = 0.0
    """WGAN-GP's weight on (|grad| - 1)^2 between real and generated images; the paper: 10."""
    drift: float = 0.0
    """Weight of D's squared logits at real images, which keeps Wasserstein critics from drifting off. ProGAN: 0.001."""
    penalty_every: int = 4
    """Penalties every n iterations with n times the weight: a third of the time saved, same result (StyleGAN2)."""
    clip: float = 0.0
    """Clamp D's weights to +-clip after each of its steps (the first WGAN); 0 is off."""
    discriminator_steps: int = 1
    """D's steps to one of G. Wasserstein critics want more."""
    imitation_kimg: float = 100.0
    """Of a run that begins from an exported model whose weights do not fit: how long it is imitated; 0: not at all."""
    head_start_kimg: float = 0.0
    """D learns alone for so long: a generator that begins trained would be spoilt by one that has seen nothing."""
    label_smoothing: float = 0.0
    """Real target 1 - this, for minimax and non-saturating (arXiv:1606.03498)."""

    scale: int = 1
    """Side of the output over side of the input, of image-to-image families."""
    degradation: str = ""
    """What makes the inputs out of clean images, on line (`python -m training data --list`); "" reads pairs."""
    load_size: int = 0
    """Side to which images are brought before crops of `size` are cut, px; 0 is a prepared set's own."""
    shrink: float = 1.0
    """Crops up to so many times larger, shrunk: more scales, and cleaner edges, out of the same photographs."""
    output: Literal["image", "residual", "shade", "chroma", "fill", "inpaint"] = "image"
    """What the generator's last layer is: the image; a change of the (enlarged) input, which is learnt far faster where
    they are alike; such a change without fine detail (`shade`); colour for the input's luminance; what lies under the
    mask, with the rest copied (`fill`); or that with its coarse part from a smooth filling (`inpaint`)."""
    downsamplings: int = 2
    """Halvings inside an image-to-image generator; input sides are padded to multiples of 2 to this power."""
    pixel_loss: Literal["l1", "l2", "psnr"] = "l1"
    """Mean absolute or squared difference (l1 blurs less), or the mean of the logarithms of each image's squared one,
    which is what a mean PSNR is made of."""
    pixel_weight: float = 0.0
    """Of the pixel loss, images in [-1, 1]. Pix2Pix: 100."""
    perceptual_weight: float = 0.0
    """Of the distance between VGG features (training/perceptual.py)."""
    adversarial_weight: float = 1.0
    """Of the objective in an image-to-image generator's loss; 0 trains without D (the PSNR stage)."""
    cycle_weight: float = 0.0
    """CycleGAN: of |B2A(A2B(a)) - a|; the paper: 10."""
    identity_weight: float = 0.0
    """CycleGAN: of |A2B(b) - b|, which keeps colours; the paper: half of `cycle_weight`."""
    pool: int = 0
    """CycleGAN: D also sees one of so many earlier fakes in half of the cases (arXiv:1612.07828); 0 is off."""

    feature_weight: float = 0.0
    """Weight in G's loss of further discriminators on frozen VGG16 features (arXiv:2111.01007); 0 is off; 0.3 to 1. For
    photographs; on the drawn faces at 32 px they learnt slowly (62 pairs of 100 told apart after 15 kimg)."""
    class_weight: float = 0.0
    """Weight of AC-GAN's classifier (arXiv:1610.09585): D learns real images' classes, G is asked to be recognised.
    Makes labels mean more and samples more alike; 0.1 to 0.5, conditional convolutional nets only."""

    mapping_layers: int = 0
    """StyleGAN: layers of the mapping network from z to w, which styles every layer; 0 is without styles, z (brought to
    length 1 per unit) being the input of the first layer alone. The paper: 8; 4 do for small nets."""
    mapping_rate: float = 0.01
    """Learning rate of the mapping network, as a multiple: at the root of everything, it runs away otherwise."""
    constant_input: bool = False
    """StyleGAN: begin from a learned constant instead of from the latent; needs styles."""
    noise: bool = False
    """StyleGAN: a fresh number per pixel after every convolution, with a learned strength: hair, grain, leaves."""
    style_mixing: float = 0.0
    """StyleGAN: share of training images whose layers from a random one on are styled by another latent. Paper: 0.9."""
    resample: Literal["nearest", "bilinear"] = "nearest"
    """How nets of the ProGAN line change resolution; bilinear is smoother (StyleGAN's first feature)."""
    path_length_weight: float = 0.0
    """StyleGAN2: of the squared deviation of |dG/dw| from its mean, which evens out the latent space. The paper: 2."""
    path_length_every: int = 8
    """Path-length penalties every n iterations with n times the weight, on half of the batch: each costs several."""
    discriminator_kind: Literal["strided", "ladder"] = "strided"
    """For the ProGAN line: `ladder`, as published, has two convolutions an octave; `strided` is DCGAN's, less work."""
    grow_until: float = 0.0
    """ProGAN: fraction of the run over which the resolution grows from the smallest to the whole, in turns of fading in
    and of staying; 0 starts at the whole."""

    condition_noise: float = 0.0
    """LAPGAN: noise on the images that finer levels are given, up to this deviation: those that they meet when drawing
    are not as clean as real ones; 0.05 to 0.2. CycleGAN: noise of this deviation on what is translated back, in which
    nothing can be hidden."""
    beta: float = 1.0
    """VAE: weight of the divergence from the prior; more makes latents tidier, pictures softer; 0 is an autoencoder."""
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    """VAE: of pixels given the latent; gaussian with the deviation that fits best, bernoulli for black and white."""

    optimiser: Literal["adam", "rmsprop", "sgd"] = "adam"
    learning_rate: float = 2e-4
    """Of G; of D too unless `discriminator_learning_rate` is set."""
    discriminator_learning_rate: float = 0.0
    """0 means `learning_rate`."""
    beta1: float = 0.0
    """Momentum; 0 with penalties, 0.5 in DCGAN's paper. For sgd: its momentum."""
    beta2: float = 0.99
    """0.99 rather than 0.999: the target moves."""
    decay_from: float = 0.5
    """Fraction of the run after which learning rates fall linearly to `decay_to` of their value; 1 is never."""
    decay_to: float = 0.05

    batch_size: int = 64
    """Images of one optimiser step. 64 keeps two cores busy; larger gains little at 32 px."""
    microbatch: int = 0
    """Images of one forward pass; smaller than `batch_size` accumulates gradients. 0: the whole batch."""
    total_kimg: float = 1000.0
    """Length of the run."""
    ema_kimg: float = 10.0
    """Half-life of the generator's moving average. Longer is smoother and lags more."""
    ema_rampup: float = 0.05
    """The half-life is at most this fraction of the images seen, so early averages are not stuck at the start."""
    mirror: bool = False
    """Flip images left to right at random. Right for faces and landscapes, wrong for digits and letters."""
    rotate: bool = False
    """Turn pairs by quarter turns, too: for super-resolution, where any side may be up. Square crops alone."""
    augment: str = ""
    """For fewer than ~10,000 images: DiffAugment, e.g. `color,translation,cutout` (arXiv:2006.10738), or `ada`
    (arXiv:2006.06676), which turns itself up and down."""
    ada_kimg: float = 500.0
    """Thousand images in which ADA's probability could go from 0 to 1. The paper's; short runs want less."""
    ada_target: float = 0.6
    """Certainty of D that ADA steers for: the mean sign of its logits of reals (the relativistic objective: of their
    difference to the fakes'). The paper's; lower augments more."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 autocast for the nets' bodies; logits and penalties stay in fp32."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Where this recipe departs from its source, for the card."""

    def replaced(self, **changes: Any) -> Self:
        """This recipe with some fields changed.

        Raises:
            RecipeError: naming the unknown field and the nearest known ones, or the wrong type.
        """
        kinds = typing.get_type_hints(type(self))
        for name, value in changes.items():
            if name not in kinds:
                import difflib

                near = difflib.get_close_matches(name, kinds, n=3)
                raise RecipeError(
                    f"recipe has no field {name!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
                )
            _check_type(name, value, kinds[name])
        recipe = dataclasses.replace(self, **changes)
        recipe.validate()
        return recipe

    def validate(self) -> None:
        """Refuse values that cannot train.

        Raises:
            RecipeError: naming the field and what would be right.
        """
        for name in (
            "size",
            "channels",
            "latent_dim",
            "generator_width",
            "discriminator_width",
            "max_channels",
            "batch_size",
        ):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.channels not in (1, 3):
            raise RecipeError(f"channels is {self.channels}, must be 1 (grey) or 3 (RGB)")
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise RecipeError(f"{name} is {value}, must be a finite number of at least 0")
        for name in ("total_kimg", "learning_rate"):
            if not getattr(self, name) > 0:
                raise RecipeError(f"{name} is {getattr(self, name)}, must be above 0")
        for name in ("penalty_every", "path_length_every", "discriminator_steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}, must be at least 1")
        for name in ("dropout", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}, must be in [0, 1)")
        for name in ("decay_from", "decay_to", "style_mixing", "grow_until"):
            if getattr(self, name) > 1:
                raise RecipeError(f"{name} is {getattr(self, name)}, must be in [0, 1]")
        for name in ("scale", "shrink"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.class_weight and self.architecture == "mlp":
            raise RecipeError("class_weight is for convolutional nets: architecture 'mlp' has no classifier")
        if self.label_smoothing and self.objective not in ("minimax", "non_saturating"):
            raise RecipeError(f"label_smoothing goes with minimax and non_saturating, objective is {self.objective!r}")
        penalised = self.r1_gamma or self.r2_gamma or self.gp_lambda
        if penalised and self.discriminator_norm == "batch":
            raise RecipeError(
                "discriminator_norm is 'batch' beside a gradient penalty, which needs independent rows: use 'none'"
            )
        if self.microbatch and self.batch_size % self.microbatch:
            raise RecipeError(f"microbatch is {self.microbatch}, must divide batch_size {self.batch_size}")

    def one_architecture_of(self, *known: str) -> None:
        """Refuse an `architecture` that the family does not build.

        Raises:
            RecipeError: naming those that it does.
        """
        if self.architecture not in known:
            raise RecipeError(f"architecture is {self.architecture!r}, this family builds {', '.join(known)}")

    def watched(self, read: set[str]) -> Self:
        """The same recipe, which adds the names of the fields that are read of it to `read`."""
        plain, original = type(self), self

        class Watched(plain):  # type: ignore[misc, valid-type]
            def __getattribute__(self, name: str) -> Any:
                read.add(name)
                return super().__getattribute__(name)

            def replaced(self, **changes: Any) -> Any:  # which reads every field
                return original.replaced(**changes).watched(read)

        other: Self = object.__new__(Watched)
        vars(other).update(vars(self))
        return other

    def to_json(self) -> dict[str, Any]:
        """Plain types, for recipe.json, checkpoints and the manifest."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls().replaced(**data)

    @classmethod
    def parse(cls, assignments: typing.Sequence[str]) -> dict[str, Any]:
        """`["r1_gamma=0.1", "mirror=true"]` as typed changes for `replaced`.

        Raises:
            RecipeError: an assignment without `=`, an unknown field or an unreadable value.
        """
        kinds = typing.get_type_hints(cls)
        changes: dict[str, Any] = {}
        for text in assignments:
            name, equals, value = text.partition("=")
            if not equals:
                raise RecipeError(f"{text!r}: write FIELD=VALUE, e.g. r1_gamma=0.1")
            kind = kinds.get(name, str)
            changes[name] = _parse_value(name, value, kind)
        return changes


def _parse_value(name: str, text: str, kind: Any) -> Any:
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() not in words:
            raise RecipeError(f"{name} is {text!r}, must be true or false")
        return words[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise RecipeError(
                f"{name} is {text!r}, must be {'a whole number' if kind is int else 'a number'}"
            ) from None
    return text


def _check_type(name: str, value: Any, kind: Any) -> None:
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise RecipeError(f"{name} is {value!r}, must be one of {', '.join(map(str, typing.get_args(kind)))}")
        return
    if origin in (Mapping, typing.get_origin(Mapping[str, str]), types.MappingProxyType):
        kind = Mapping
    wanted: Any = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise RecipeError(f"{name} is {value!r}, must be of type {getattr(kind, '__name__', kind)}")
