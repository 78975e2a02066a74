"""From the jaxpr of one step to a Program."""
