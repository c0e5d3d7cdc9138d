//! What was acknowledged is there, once, and nothing else: after kills at random moments and at every durable step, after power
//! cuts, on full and failing disks. Bugs that are planted on purpose prove that the tests would notice.

mod disk;
mod full_disk;
mod kills;
mod ledger;
mod power;
mod seeded_bugs;
mod server;

/// How often a test repeats its fault: as given in CI, or as `TEST_FAULTS` says.
fn rounds(in_ci: u32) -> u32 {
    std::env::var("TEST_FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(in_ci)
}
