//! End-to-end tests of the `wattlake` binary: crash tests in `tests/`, real clients in `e2e/` (Python), started by
//! `tests/run`.
