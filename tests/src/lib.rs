//! End-to-end tests of the `wattlake` binary: fault tests in `tests/faults/`, real clients in `e2e/` (Python), started by
//! `tests/run`.
