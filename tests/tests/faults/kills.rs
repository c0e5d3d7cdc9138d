//! kill -9 at random moments, death at every durable step, SIGTERM, and two processes on one directory.

use std::{collections::BTreeSet, path::Path, process::Command, sync::Arc, time::Duration};

use rand::RngExt;
use serde_json::json;

use crate::{
    ledger::Ledger,
    rounds,
    server::{Options, Server, binary},
};

/// Starts on what is left, and again: both times it holds what the ledger says.
async fn check(options: &Options, ledger: &Ledger, words: &str) {
    let server = Server::start(options).await;
    let rows = server.rows().await.unwrap_or_else(|error| panic!("{words}: {error}"));
    ledger.check(&rows).unwrap_or_else(|error| panic!("{words}: {error}"));
    drop(server);
    // Nothing of the recovery depends on having been done once.
    let server = Server::start(options).await;
    assert_eq!(server.rows().await.expect("rows"), rows, "{words}: a second start shows something else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_readings_survive_kills() {
    let kills = rounds(50);
    let mut acknowledged = 0;
    for round in 0..kills.div_ceil(25) {
        let folder = tempfile::TempDir::new().expect("folder");
        let options = Options::new(&folder.path().join("data"), &folder.path().join("log"));
        let ledger = Arc::new(Ledger::default());
        for kill in 0..25 {
            let mut server = Server::start(&options).await;
            let load = ledger.load(&server);
            let pause = rand::rng().random_range(5..700);
            tokio::time::sleep(Duration::from_millis(pause)).await;
            server.kill();
            load.stop().await;
            if kill % 5 == 4 {
                check(&options, &ledger, &format!("round {round}, kill {kill}")).await;
            }
        }
        acknowledged += ledger.acknowledged();
    }
    assert!(acknowledged > 500, "only {acknowledged} requests were acknowledged: the test proves too little");
}

/// The names of all failpoints in the sources of a crate.
fn failpoints_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).expect("sources") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            failpoints_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("source");
            let names = text.split("failpoint!(\"").skip(1).filter_map(|rest| rest.split_once('"'));
            found.extend(names.map(|(name, _)| name.to_owned()));
        }
    }
}

/// The failpoints that a server under load comes by.
pub(crate) fn failpoints() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace");
    let mut names = BTreeSet::new();
    for part in ["catalog/src", "engine/src"] {
        failpoints_in(&root.join(part), &mut names);
    }
    // Reached by imports, by the very first start and by a bug only: they have tests of their own.
    // Those of polling are reached in e2e/test_sources.py, where there is a vendor to poll.
    names.retain(|name| {
        !["import.", "poll.", "token."].iter().any(|start| name.starts_with(start))
            && name != "catalog.between_two_transactions"
    });
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_readings_survive_death_at_every_durable_step() {
    let names = failpoints();
    assert!(names.len() >= 28, "only {} failpoints", names.len());
    // By hand: only those with this word.
    let word = std::env::var("TEST_FAILPOINT").unwrap_or_default();
    let names: BTreeSet<_> = names.into_iter().filter(|name| name.contains(&word)).collect();
    for name in &names {
        let folder = tempfile::TempDir::new().expect("folder");
        let options = Options::new(&folder.path().join("data"), &folder.path().join("log"));
        let ledger = Arc::new(Ledger::default());
        let mut deaths = 0;
        let wanted = rounds(2);
        for _ in 0..wanted * 4 {
            if deaths == wanted {
                break;
            }
            // At the start of a process, and of exports, the hits are few.
            let is_rare =
                ["recover.", "lock.", "migrate.", "export."].iter().any(|start| name.starts_with(start));
            // Something to recover, first.
            if name.starts_with("recover.") {
                let mut unflushed = options.clone();
                unflushed.settings.extend(["flush.interval=1h".into(), "flush.max_bytes=32MiB".into()]);
                let mut server = Server::start(&unflushed).await;
                let load = ledger.load(&server);
                tokio::time::sleep(Duration::from_millis(300)).await;
                server.kill();
                load.stop().await;
            }
            let skipped = if is_rare { 0 } else { rand::rng().random_range(0..3) };
            let armed = options.with_failpoints(&format!("{name}={skipped}*off->return"));
            let armed = if name.starts_with("gc.") { armed.with_short_grace() } else { armed };
            match Server::try_start(&armed).await {
                Err(_) => deaths += 1,
                Ok(mut server) if name.starts_with("export.") => {
                    // Beside all the rest an export would take its time.
                    let load = ledger.load(&server);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    load.stop().await;
                    let export = server.post("/api/export").json(&json!({ "format": "delta" }));
                    let _ = export.send().await;
                    deaths += u32::from(server.wait(Duration::from_secs(15)).await.is_some());
                }
                Ok(mut server) => {
                    let load = ledger.load(&server);
                    let ended = server.wait(Duration::from_secs(15)).await;
                    deaths += u32::from(ended.is_some());
                    server.kill();
                    load.stop().await;
                }
            }
            check(&options, &ledger, name).await;
        }
        assert_eq!(deaths, wanted, "{name} was not reached often enough");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_valid_that_nobody_was_told() {
    let folder = tempfile::TempDir::new().expect("folder");
    let options = Options::new(&folder.path().join("data"), &folder.path().join("log"));
    for _ in 0..2 {
        let died = Server::try_start(&options.with_failpoints("token.before_commit=return")).await;
        assert!(died.is_err(), "the first token was not made");
    }
    let server = Server::start(&options).await;
    assert!(server.rows().await.expect("the token of the file is valid").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_nobody_knows_of_is_found_by_the_next() {
    let folder = tempfile::TempDir::new().expect("folder");
    let options = Options::new(&folder.path().join("data"), &folder.path().join("log"));
    let ledger = Arc::new(Ledger::default());
    for round in 0..rounds(4) {
        let mut server = Server::start(&options.with_failpoints("fault.commit_answer_lost=30%return")).await;
        let load = ledger.load(&server);
        tokio::time::sleep(Duration::from_secs(2)).await;
        load.stop().await;
        let rows = server.rows().await.expect("rows");
        ledger.check(&rows).unwrap_or_else(|error| panic!("round {round}, running: {error}"));
        server.kill();
        check(&options, &ledger, &format!("round {round}")).await;
    }
    let log = std::fs::read_to_string(&options.log).expect("log");
    assert!(log.contains("a change happened although its commit failed"), "no answer was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_asked_to_stop_loses_nothing() {
    let folder = tempfile::TempDir::new().expect("folder");
    let options = Options::new(&folder.path().join("data"), &folder.path().join("log"));
    let ledger = Arc::new(Ledger::default());
    for round in 0..rounds(10) {
        let mut server = Server::start(&options).await;
        let load = ledger.load(&server);
        let pause = rand::rng().random_range(5..500);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        server.terminate();
        let status = server.wait(Duration::from_secs(60)).await.expect("it ends");
        assert_eq!(status.code(), Some(0), "round {round}");
        load.stop().await;
        if round % 5 == 4 {
            check(&options, &ledger, &format!("stop {round}")).await;
        }
    }
}

/// All files of a folder with their contents.
fn contents(folder: &Path, found: &mut Vec<(std::path::PathBuf, Vec<u8>)>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            contents(&path, found);
        } else {
            let bytes = std::fs::read(&path).expect("file");
            found.push((path, bytes));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_changes_nothing_and_says_who_is_there() {
    let folder = tempfile::TempDir::new().expect("folder");
    let mut options = Options::new(&folder.path().join("data"), &folder.path().join("log"));
    // Nothing happens by itself meanwhile.
    options.settings =
        vec!["flush.interval=1h".into(), "compaction.interval=1h".into(), "sources.poll=false".into()];
    for _ in 0..rounds(5) {
        let mut server = Server::start(&options).await;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        // But one thing: the first start writes down that it looked for gaps.
        let started = std::time::Instant::now();
        let has_looked = |(_, bytes): &(_, Vec<u8>)| bytes.windows(5).any(|part| part == b"watch");
        while !before.iter().any(has_looked) {
            assert!(started.elapsed() < Duration::from_secs(30), "nobody looked for gaps");
            tokio::time::sleep(Duration::from_millis(20)).await;
            before.clear();
            contents(&options.dir, &mut before);
        }
        let second = Command::new(binary())
            .args(["serve", "--data-dir", &options.dir.display().to_string()])
            .args(["--set", "http.listen=127.0.0.1:0"])
            .output()
            .expect("second");
        assert_eq!(second.status.code(), Some(73));
        assert!(String::from_utf8_lossy(&second.stderr).contains(&server.pid().to_string()));
        contents(&options.dir, &mut after);
        assert_eq!(before, after);
        // A killed holder keeps nobody out.
        server.kill();
    }
}
