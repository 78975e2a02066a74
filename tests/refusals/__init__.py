"""Every wrong call, and what its error says."""

from .around import AROUND
from .captures import CAPTURE
from .data import DATA
from .options import OPTIONS
from .rules import OWN_RULES
from .slots import SLOTS
from .steps import STEP
from .strategies import STRATEGY

REFUSALS = (*DATA, *STEP, *CAPTURE, *STRATEGY, *OPTIONS, *SLOTS, *AROUND, *OWN_RULES)
