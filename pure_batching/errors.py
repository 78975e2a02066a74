"""The exceptions, and how their texts are built.

Every text names the place (a leaf's path, an argument, a source line), what was got, what was expected, and the
repair. All but `NonFiniteError`, which is about results, are raised before anything runs. They leave every argument as
it was.
"""


class PureBatchingError(ValueError):
    """The base of every error that this package raises on purpose."""

    def __init__(self, where: str, *, got: object, expected: object, repair: str) -> None:
        super().__init__(f"{where}: got {got}, expected {expected}. {repair}")
        self.where, self.got, self.expected = where, got, expected


class CaptureError(PureBatchingError):
    """A module or a function cannot be turned into a pure program."""


class StructureError(PureBatchingError):
    """A tree has other keys, or another number of leaves, than it must have, or an argument is of another kind."""


class ShapeError(PureBatchingError):
    """An array has the wrong shape."""


class BatchSizeError(ShapeError):
    """A batch has another size than the strategy that runs it, or a size that no strategy can have."""


class DtypeError(PureBatchingError):
    """An array has a dtype that cannot be converted without loss, or a value is no array or no random key."""


class UnitError(PureBatchingError):
    """A quantity has another physical dimension than it must have."""


class CarryError(PureBatchingError):
    """A carry belongs to another learner."""


class DeviceError(PureBatchingError):
    """Arguments of one call were put on different devices."""


class LossError(PureBatchingError):
    """A loss cannot be called, or does not return one real number for one sample at one step, or JAX cannot map it."""


class AlgorithmError(PureBatchingError):
    """A rule has a number out of range, does not fit a model, is written wrongly, or has no such derivative."""


class OptionError(PureBatchingError):
    """An option has a value that it cannot have, or is missing where it is needed."""


class StrategyError(PureBatchingError):
    """A strategy cannot run this learner."""


class RandomnessError(StrategyError):
    """A step draws random numbers in a way in which `manual` cannot give each sample its own."""


class SampleCouplingError(StrategyError):
    """A module's own code lets one sample of a batch reach another, which `manual` refuses unless told otherwise."""


class SlotError(PureBatchingError):
    """A session cannot be admitted to a table of slots, or cannot be found in it."""


class NonFiniteError(PureBatchingError):
    """A number is NaN or infinite.

    Attributes:
      step: where the first of them stands; None where the array has no axis of steps.
      sample: likewise, of the samples.
      session: the session in a table of slots; None elsewhere. Its slot is `sample`.
    """

    def __init__(
        self,
        where: str,
        *,
        got: object,
        expected: object,
        repair: str,
        step: int | None,
        sample: int | None,
        session: int | None = None,
    ) -> None:
        super().__init__(where, got=got, expected=expected, repair=repair)
        self.step, self.sample, self.session = step, sample, session


class PickleError(PureBatchingError):
    """A learner cannot be sent to another process; its params and its carry can."""


class NativeError(PureBatchingError):
    """Native BrainScale states do not fit a learner."""
