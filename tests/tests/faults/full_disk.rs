//! Disks that are full or have become read-only: writes are refused with words, questions are answered, and nothing is lost.

use std::{fs::File, io::Write, path::Path, sync::Arc, time::Duration};

use rand::RngExt;

use crate::{
    disk::Disk,
    ledger::Ledger,
    rounds,
    server::{Options, Server},
};

/// Takes all space that is left.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("filler");
    let block = vec![0u8; 1 << 20];
    let mut size = block.len();
    while size >= 4096 {
        if file.write_all(&block[..size]).is_err() {
            size /= 2;
        }
    }
    let _ = file.sync_all();
}

/// Status and words of the answer to a write.
async fn probe(server: &Server) -> (u16, String) {
    let line = "other,host=probe value=1 1577836800";
    let sent = server.post("/api/v2/write?bucket=b&precision=s").body(line).send().await;
    let response = sent.expect("an answer");
    (response.status().as_u16(), response.text().await.unwrap_or_default())
}

async fn status_of_write(server: &Server) -> u16 {
    probe(server).await.0
}

async fn until(server: &Server, wanted: impl Fn(u16) -> bool, words: &str) -> Result<(), String> {
    let mut last = (0, String::new());
    for _ in 0..600 {
        last = probe(server).await;
        if wanted(last.0) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err(format!("{words} did not come, the last answer was {last:?}"))
}

/// Readings of the ledger alone.
async fn ledger_rows(server: &Server) -> Result<Vec<(u64, f64)>, String> {
    let probe = 1_577_836_800;
    let rows = server.rows().await?;
    // The probe writes one reading, of a metric of its own, at the time of the ledger's first.
    let probes = rows.iter().filter(|row| **row == (probe, 1.0)).count();
    match probes {
        0 | 1 => Ok(rows.into_iter().filter(|row| *row != (probe, 1.0)).collect()),
        n => Err(format!("the probe is there {n} times")),
    }
}

/// Fills the disk under load, frees it, and compares; answers what is wrong.
async fn find_fault(fills: u32) -> Option<Result<(), String>> {
    let disk = Disk::or_skip(64, "full disks")?;
    let options = Options::new(&disk.path().join("data"), &disk.outside().join("log"));
    let filler = disk.path().join("filler");
    let ledger = Arc::new(Ledger::default());
    let mut server = match Server::try_start(&options).await {
        Ok(server) => server,
        Err(message) => return Some(Err(message)),
    };
    for _ in 0..fills {
        let load = ledger.load(&server);
        let pause = rand::rng().random_range(20..300);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        fill(&filler);
        tokio::time::sleep(Duration::from_millis(700)).await;
        let answered = server.rows().await;
        std::fs::remove_file(&filler).expect("free");
        let Ok(_) = answered else { return Some(answered.map(drop)) };
        let accepted =
            until(&server, |status| status == 204, "an accepted write after space was freed").await;
        load.stop().await;
        if accepted.is_err() {
            return Some(accepted);
        }
        match ledger_rows(&server).await.and_then(|rows| ledger.check(&rows)) {
            Ok(()) => {}
            found => return Some(found),
        }
    }
    if server.wait(Duration::ZERO).await.is_some() {
        return Some(Err("the server ended on a full disk".to_owned()));
    }
    server.kill();
    let server = match Server::try_start(&options).await {
        Ok(server) => server,
        Err(message) => return Some(Err(message)),
    };
    Some(ledger_rows(&server).await.and_then(|rows| ledger.check(&rows)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    if let Some(Err(message)) = find_fault(rounds(10)).await {
        panic!("{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_in_the_answer() {
    let Some(disk) = Disk::or_skip(64, "full disks") else { return };
    let options = Options::new(&disk.path().join("data"), &disk.outside().join("log"));
    let server = Server::start(&options).await;
    assert_eq!(status_of_write(&server).await, 204);
    fill(&disk.path().join("filler"));
    let ledger = Arc::new(Ledger::default());
    let load = ledger.load(&server);
    until(&server, |status| status == 507, "507 Insufficient Storage").await.expect("in words");
    load.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_became_read_only_questions_are_answered() {
    let Some(mut disk) = Disk::or_skip(64, "read-only disks") else { return };
    let options = Options::new(&disk.path().join("data"), &disk.outside().join("log"));
    let ledger = Arc::new(Ledger::default());
    for _ in 0..rounds(3) {
        let mut server = Server::start(&options).await;
        // Known before the disk breaks: making a meter needs the catalog.
        assert_eq!(status_of_write(&server).await, 204);
        let load = ledger.load(&server);
        tokio::time::sleep(Duration::from_millis(300)).await;
        load.stop().await;
        let before = ledger_rows(&server).await.expect("rows");
        disk.break_file_system();
        for _ in 0..20 {
            assert_eq!(status_of_write(&server).await, 503);
        }
        assert_eq!(ledger_rows(&server).await.expect("rows"), before);
        assert!(server.wait(Duration::ZERO).await.is_none(), "the server goes on");
        server.kill();
        disk.power_on();
        let server = Server::start(&options).await;
        ledger.check(&ledger_rows(&server).await.expect("rows")).expect("as acknowledged");
    }
}
