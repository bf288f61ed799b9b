"""Steps from one schema to the next, in order; each is final once released."""
