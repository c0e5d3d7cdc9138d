//! The proof that the tests of this folder can fail: each planted bug is found by one of them.

use std::{sync::Arc, time::Duration};

use rand::RngExt;

use crate::{
    ledger::Ledger,
    power,
    server::{Options, Server},
};

/// A bug must be found within as many faults.
const FAULTS_MAX: u32 = 100;

/// Kills (or lets a failpoint do it) until something is wrong; answers what.
async fn by_kills(failpoints: &str) -> Option<Result<(), String>> {
    for _ in 0..FAULTS_MAX / 10 {
        let folder = tempfile::TempDir::new().expect("folder");
        let options = Options::new(&folder.path().join("data"), &folder.path().join("log"));
        let armed = options.with_failpoints(failpoints);
        let ledger = Arc::new(Ledger::default());
        for _ in 0..10 {
            let found = async {
                let mut server = Server::try_start(&armed).await?;
                let load = ledger.load(&server);
                let pause = rand::rng().random_range(200..900);
                let _ = server.wait(Duration::from_millis(pause)).await;
                server.kill();
                load.stop().await;
                let server = Server::try_start(&options).await?;
                ledger.check(&server.rows().await?)
            };
            let found = found.await;
            if found.is_err() {
                return Some(found);
            }
        }
    }
    Some(Ok(()))
}

async fn is_found(bug: &str, found: Option<Result<(), String>>) {
    match found {
        // Says itself that it was skipped.
        None => {}
        Some(Err(how)) => println!("{bug}: {}", how.lines().next().unwrap_or_default()),
        Some(Ok(())) => panic!("{bug} was not found by {FAULTS_MAX} faults: the tests prove too little"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_bugs_are_found_by_kills() {
    for bug in [
        "bug.log_released_before_commit=return",
        "bug.watermark_too_high=return",
        "bug.lost_delete_file=return",
        "bug.watermark_in_its_own_transaction=return;catalog.between_two_transactions=3*off->return",
        "bug.compaction_ignores_new_deletes=return;bug.commit_ignores_its_base=return",
    ] {
        is_found(bug, by_kills(bug).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_bugs_are_found_by_power_cuts() {
    for bug in ["bug.ack_before_sync=return", "bug.wal_no_sync=return", "bug.put_no_sync=return"] {
        is_found(bug, power::find_fault(bug, FAULTS_MAX).await).await;
    }
}
