"""Side-by-side timings of jaxbound, hand-written JAX and the plain network; never asserted in tests."""
