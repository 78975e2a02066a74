"""BrainScale's online learning as pure functions of explicit pytrees, with interchangeable batching strategies."""

from . import errors as errors, rules as rules
from ._algorithms.base import Algorithm as Algorithm
from ._algorithms.bptt import BPTT as BPTT
from ._algorithms.d_rtrl import D_RTRL as D_RTRL
from ._algorithms.e_prop import EProp as EProp
from ._algorithms.es_d_rtrl import ES_D_RTRL as ES_D_RTRL
from ._algorithms.hybrid import Hybrid as Hybrid
from ._algorithms.ottt import OTTT as OTTT
from ._algorithms.rtrl import RTRL as RTRL
from ._batching import (
    chunked as chunked,
    loop as loop,
    manual as manual,
    sharded as sharded,
    vmap as vmap,
)
from ._bridge import from_native as from_native, to_native as to_native
from ._capture import capture as capture, capture_function as capture_function
from ._carries import (
    concat as concat,
    gather as gather,
    permute as permute,
    scatter as scatter,
    split as split,
    stack as stack,
    unstack as unstack,
)
from ._cost import Cost as Cost, cost as cost
from ._explain import Explanation as Explanation, explain as explain
from ._finite import check_finite as check_finite
from ._independence.audit import Audit as Audit, audit as audit
from ._learning.carry import Carry as Carry, apart as apart
from ._learning.clipping import clipped_grad as clipped_grad
from ._learning.learner import Learner as Learner
from ._learning.norms import sample_norms as sample_norms
from ._learning.sequence import Aux as Aux, sequence_grad as sequence_grad
from ._learning.updates import online as online
from ._saved import check_saved as check_saved
from ._slot_table import SlotTable as SlotTable
from ._slots import SlotAux as SlotAux, Slots as Slots
from ._sources.states import read_states as read_states, write_states as write_states
from .errors import PureBatchingError as PureBatchingError, SampleCouplingError as SampleCouplingError

__version__ = "0.1.0"
