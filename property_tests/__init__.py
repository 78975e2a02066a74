"""The laws under Hypothesis; JAX is set as for the other tests, before any of its backends exists."""

import tests as tests
