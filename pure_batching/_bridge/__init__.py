"""Between the native objects of BrainScale and BrainState, and the trees of this package."""
