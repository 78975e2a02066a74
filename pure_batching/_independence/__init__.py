"""Does a sample of a batch reach another one? The samples' axis is followed through a jaxpr, equation by equation."""
