"""Find out whether the samples of a batch reach each other, by following their axis through a jaxpr."""
