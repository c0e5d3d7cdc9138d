//! `wattlake-load`: writes line protocol over HTTP as fast as the server takes it, and says how fast that was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use serde_json::json;
use wattlake_benches::Fleet;

/// Writes readings of a made-up fleet and prints one line of JSON.
#[derive(Debug, Parser)]
#[command(
    after_help = "Example:\n  wattlake-load --url http://127.0.0.1:8787 --token $(cat wattlake-data/admin-token)"
)]
struct Args {
    /// The server, or a whole write address of another one
    #[arg(long, default_value = "http://127.0.0.1:8787")]
    url: String,
    #[arg(long, default_value = "")]
    token: String,
    #[arg(long, default_value_t = 2_000_000)]
    readings: u64,
    /// Lines of a request
    #[arg(long, default_value_t = 5_000)]
    lines: u64,
    #[arg(long, default_value_t = 2)]
    connections: usize,
    #[arg(long, default_value_t = 900)]
    devices: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args = Args::parse();
    let url = match args.url.matches('/').count() {
        2 => format!("{}/api/v2/write?bucket=bench", args.url),
        _ => args.url.clone(),
    };
    let fleet = Fleet { devices: args.devices };
    // Bodies are made before the clock starts: the client shares the machine with the server.
    let starts = (0..args.readings).step_by(usize::try_from(args.lines).unwrap_or(usize::MAX));
    let bodies: Arc<Vec<String>> =
        Arc::new(starts.map(|from| fleet.lines(from, args.lines.min(args.readings - from))).collect());
    let (next, retried) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let mut workers = Vec::new();
    for _ in 0..args.connections {
        let (bodies, next, retried) = (Arc::clone(&bodies), Arc::clone(&next), Arc::clone(&retried));
        let (url, token) = (url.clone(), args.token.clone());
        workers.push(tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut latencies = Vec::new();
            loop {
                let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed) as usize) else {
                    break latencies;
                };
                loop {
                    let sent = Instant::now();
                    let response = client.post(&url).bearer_auth(&token).body(body.clone()).send().await;
                    let response = response.unwrap_or_else(|error| panic!("cannot write to {url}: {error}"));
                    let status = response.status().as_u16();
                    let text = response.text().await.unwrap_or_default();
                    if matches!(status, 429 | 503) {
                        retried.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                    assert!(status < 300, "{status}: {text}");
                    latencies.push(sent.elapsed());
                    break;
                }
            }
        }));
    }
    let mut latencies = Vec::new();
    for worker in workers {
        match worker.await {
            Ok(of_worker) => latencies.extend(of_worker),
            Err(error) => {
                eprintln!("wattlake-load: {error}");
                std::process::exit(1);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    latencies.sort();
    let percentile =
        |p: usize| latencies.get(latencies.len() * p / 100).map_or(0.0, |l| l.as_secs_f64() * 1e3);
    println!(
        "{}",
        json!({
            "readings": args.readings,
            "seconds": (seconds * 100.0).round() / 100.0,
            "readings_per_s": (args.readings as f64 / seconds).round(),
            "p50_ms": (percentile(50) * 10.0).round() / 10.0,
            "p99_ms": (percentile(99) * 10.0).round() / 10.0,
            "requests": latencies.len(),
            "retried": retried.load(Ordering::Relaxed),
        })
    );
}
