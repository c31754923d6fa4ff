//! The simulated devices and the foreign programs that the tests use.
