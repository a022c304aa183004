"""One file per bounding method; each turns a function into a bound function of the same arguments."""
