"""BrainScale's online learning as pure functions of explicit pytrees, with interchangeable batching strategies."""

from . import errors as errors
from ._algorithms.base import Algorithm as Algorithm
from ._algorithms.bptt import BPTT as BPTT
from ._algorithms.d_rtrl import D_RTRL as D_RTRL
from ._algorithms.es_d_rtrl import ES_D_RTRL as ES_D_RTRL
from ._algorithms.hybrid import Hybrid as Hybrid
from ._bridge import from_native as from_native, to_native as to_native
from ._carries import (
    concat as concat,
    gather as gather,
    permute as permute,
    scatter as scatter,
    split as split,
    stack as stack,
    unstack as unstack,
)
from ._independence.audit import Audit as Audit, audit as audit
from ._learning.execution import Carry as Carry, apart as apart
from ._learning.learner import Learner as Learner, capture as capture
from ._learning.norms import clipped_grad as clipped_grad, sample_norms as sample_norms
from ._learning.sequence import Aux as Aux, sequence_grad as sequence_grad
from ._states import read_states as read_states, write_states as write_states
from ._strategies.loop import loop as loop
from ._strategies.manual import manual as manual
from ._strategies.vmap import vmap as vmap
from .errors import PureBatchingError as PureBatchingError, SampleCouplingError as SampleCouplingError
