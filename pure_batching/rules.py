"""What a learning rule of your own is made of: derive from `Algorithm`; `docs/rules.md` builds one.

`Program` is a captured step of one sample as data; its `relations` are the uses of weights that have a trace, and the
`links` of a relation lead to the hidden groups that the use reaches. `Jacobians` and `Signal` are the derivatives of
one step. A record is a tuple of `Factors`, whose products are contracted for all steps of a window and all samples at
once.
"""

from ._algorithms.base import (
    Algorithm as Algorithm,
    Factors as Factors,
    Parts as Parts,
    apply_matrix as apply_matrix,
    apply_transposed as apply_transposed,
)
from ._program import Jacobians as Jacobians, Params as Params, Program as Program, Signal as Signal, States as States
from ._relation import Group as Group, Link as Link, Relation as Relation
