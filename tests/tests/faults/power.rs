//! Power cuts: only what was synced is there afterwards. Also the failing fsync that comes with them.

use std::{sync::Arc, time::Duration};

use rand::RngExt;

use crate::{
    disk::Disk,
    kills,
    ledger::Ledger,
    rounds,
    server::{Options, Server},
};

/// Cuts between two fresh data directories: answers grow with what was written before.
const CUTS_PER_DIRECTORY: u32 = 10;

/// Writes until the power goes; answers how the process ended, if it did by itself.
async fn cut(
    disk: &mut Disk,
    options: &Options,
    ledger: &Arc<Ledger>,
    waits_for_end: bool,
) -> Result<Option<i32>, String> {
    let mut server = Server::try_start(options).await?;
    let load = ledger.load(&server);
    let before = ledger.acknowledged();
    // Known to the catalog, and in the log.
    while ledger.acknowledged() < before + 8 && server.wait(Duration::ZERO).await.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The process may die first, where a failpoint is.
    let dies = options.failpoints.contains("->");
    let pause = if dies { 4000 } else { rand::rng().random_range(20..400) };
    let _ = server.wait(Duration::from_millis(pause)).await;
    // Without power nobody acknowledges. Here the process lives on, and the kernel may tell it of a sync that the cut came
    // in between of that it went well.
    let switch = disk.switch();
    ledger.close();
    switch.cut_power();
    let code = match waits_for_end {
        true => server.wait(Duration::from_secs(30)).await.and_then(|status| status.code()),
        false => None,
    };
    server.kill();
    load.stop().await;
    ledger.reopen();
    disk.power_on();
    Ok(code)
}

/// Rounds of power cuts until something is wrong; answers what.
pub(crate) async fn find_fault(failpoints: &str, cuts: u32) -> Option<Result<(), String>> {
    let mut disk = Disk::or_skip(256, "power cuts")?;
    for round in 0..cuts.div_ceil(CUTS_PER_DIRECTORY) {
        let options = Options::new(&disk.path().join(format!("data{round}")), &disk.outside().join("log"));
        let armed = options.with_failpoints(failpoints);
        let ledger = Arc::new(Ledger::default());
        for cut_number in 0..CUTS_PER_DIRECTORY.min(cuts) {
            let found = async {
                cut(&mut disk, &armed, &ledger, false).await?;
                let server = Server::try_start(&options).await?;
                let rows = server.rows().await?;
                ledger.check(&rows)?;
                drop(server);
                let server = Server::try_start(&options).await?;
                match server.rows().await? == rows {
                    true => Ok(()),
                    false => Err("a second start shows something else".to_owned()),
                }
            };
            if let Err(message) = found.await {
                let cuts = round * CUTS_PER_DIRECTORY + cut_number + 1;
                return Some(Err(format!("after {cuts} cuts: {message}")));
            }
        }
        std::fs::remove_dir_all(&options.dir).expect("clean");
    }
    Some(Ok(()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_readings_survive_power_cuts() {
    if let Some(Err(message)) = find_fault("", rounds(100)).await {
        panic!("{message}");
    }
}

/// The process dies between two steps, and then the power goes: what it did not sync is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_readings_survive_power_cuts_between_durable_steps() {
    for name in kills::failpoints() {
        if !(name.starts_with("wal.") || name.starts_with("put.")) {
            continue;
        }
        let skipped = rand::rng().random_range(2..6);
        let armed = format!("{name}={skipped}*off->return");
        match find_fault(&armed, rounds(1)).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(message)) => panic!("{name}: {message}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_ends_the_process_and_nothing_is_acknowledged_after_it() {
    let Some(mut disk) = Disk::or_skip(256, "failed syncs") else { return };
    let options = Options::new(&disk.path().join("data"), &disk.outside().join("log"));
    let ledger = Arc::new(Ledger::default());
    for round in 0..rounds(10) {
        let code = cut(&mut disk, &options, &ledger, true).await.expect("start");
        assert_eq!(code, Some(74), "round {round}");
        let server = Server::start(&options).await;
        ledger.check(&server.rows().await.expect("rows")).expect("as acknowledged");
    }
}
