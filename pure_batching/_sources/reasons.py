"""Why a module could not be traced or compiled, in words that say what to change."""

import re
import traceback

import brainstate
import jax

from .._wording import listed
from .blueprint import Blueprint

_CHANGE = "Change what the message names; settings such as dt go into capture(..., environ={...})."
_TIME = (
    "The time is another one at each step: count the steps in a state, and put "
    "`with brainstate.environ.context(t=count * dt):` around what reads it."
)
_UNSET = "Set it: settings such as dt and fit go into capture(..., environ={{...}}); in force are {}."
_FIT = (
    "Say whether this is training: capture(..., environ={'fit': False}), or True for the statistics of a batch, "
    "noise and dropout."
)
_UNBOUND = "Name the axis along which samples reach each other: capture(..., axis_name={!r})."
_TRACED = (
    "The step and init_state() are traced: what must be a number there is computed in the constructor, "
    "or kept in a numpy array (delay=np.array(2.0) * u.ms)."
)
_EVENTS = (
    "The operations of brainscale.nn multiply plain arrays, not brainevent's: hand the spikes over as they are, "
    "by AlignPostProj, DeltaProj or CurrentProj."
)
_GROUPED = (
    "GroupNorm takes the first of its axes as the samples: give one sample an axis of length one in front, "
    "and the same axis to the hidden state behind it."
)


def repair_of(reason: Exception, blueprint: Blueprint) -> str:
    """What to change, and in whose code it was found where that is not the captured module's own."""
    known = {
        _UNBOUND.format(_unbound_axis(reason)): bool(_unbound_axis(reason)),
        _TRACED: isinstance(reason, jax.errors.ConcretizationTypeError),
        _TIME: isinstance(reason, KeyError) and "'t' not found in" in str(reason),
        _FIT: isinstance(reason, KeyError) and "'fit' not found in" in str(reason),
        _UNSET.format(listed(blueprint.settings)): isinstance(reason, KeyError) and "not found in" in str(reason),
        _EVENTS: any(word in str(reason) for word in ("brainevent", "BinaryArray")),
        _GROUPED: "out of bounds" in str(reason) and blueprint.holds(brainstate.nn.GroupNorm),
    }
    text = next((text for text, applies in known.items() if applies), _CHANGE)
    owner, method = _raised_by(reason)
    return text if owner in ("", blueprint.name) else f"{text} It was raised in {owner}.{method}()."


def _unbound_axis(reason: Exception) -> str:
    """The name of the axis that a module's code uses and JAX does not know; "" for any other error."""
    found = re.search(r"unbound axis name:? *([^\s.]+)", str(reason)) if isinstance(reason, NameError) else None
    return found.group(1) if found else ""


def cause_of(reason: Exception) -> Exception:
    """What was raised inside a module; BrainState wraps it in what it prints of the module, which may be long."""
    inner = reason.__cause__
    if type(reason) is brainstate.BrainStateError and isinstance(inner, Exception):
        return cause_of(inner)
    return reason


def _raised_by(reason: Exception) -> tuple[str, str]:
    """The innermost module in whose code an exception arose, and its method, as far as JAX shows them."""
    frames = [frame for frame, _ in traceback.walk_tb(reason.__traceback__)]
    owners = [frame for frame in frames if isinstance(frame.f_locals.get("self"), brainstate.nn.Module)]
    return (type(owners[-1].f_locals["self"]).__name__, owners[-1].f_code.co_name) if owners else ("", "")


def first_lines(reason: Exception) -> str:
    """The beginning of a message; a KeyError's own text would quote it."""
    text = str(reason.args[0]) if isinstance(reason, KeyError) and reason.args else str(reason)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:4])
