"""BrainScale's online learning as pure functions of explicit pytrees, with interchangeable batching strategies."""

from . import _errors as errors  # noqa: F401 - the kinds of errors, as pb.errors.ShapeError
from ._algorithms.base import Algorithm as Algorithm
from ._algorithms.bptt import BPTT as BPTT
from ._algorithms.d_rtrl import D_RTRL as D_RTRL
from ._algorithms.es_d_rtrl import ES_D_RTRL as ES_D_RTRL
from ._algorithms.hybrid import Hybrid as Hybrid
from ._audit import Audit as Audit, audit as audit
from ._batch import (
    concat as concat,
    gather as gather,
    permute as permute,
    scatter as scatter,
    split as split,
    stack as stack,
    unstack as unstack,
)
from ._errors import PureBatchingError as PureBatchingError, SampleCouplingError as SampleCouplingError
from ._execution import Carry as Carry, apart as apart
from ._learner import Learner as Learner, capture as capture
from ._native import from_native as from_native, to_native as to_native
from ._norms import clipped_grad as clipped_grad, sample_norms as sample_norms
from ._sequence import Aux as Aux, sequence_grad as sequence_grad
from ._states import read_states as read_states, write_states as write_states
from ._strategies.loop import loop as loop
from ._strategies.manual import manual as manual
from ._strategies.vmap import vmap as vmap
