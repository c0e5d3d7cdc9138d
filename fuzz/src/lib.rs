//! What fuzzers, and the test that replays their corpora, do with some bytes: decode them as a file or a body, all the way to readings.

use std::{
    io::Cursor,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use tokio::runtime::Runtime;
use wattlake_catalog::Catalog;
use wattlake_config::Settings;
use wattlake_engine::{
    Body, BodyFormat, Clock, DataDir, Engine, FileFormat, FileOptions, Ingest, IngestRequest, Part, Parts,
    Storage, TimePrecision, parse_zone,
};

/// An engine with nothing in it; it lives as long as the process.
struct Bench {
    runtime: Runtime,
    ingest: Ingest,
    _dir: tempfile::TempDir,
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let dir = tempfile::TempDir::new().expect("a folder");
        let mut settings = Settings::default();
        settings.data_dir.0 = dir.path().to_owned();
        let runtime = Runtime::new().expect("a runtime");
        let engine = runtime.block_on(async {
            let data_dir = DataDir::acquire(dir.path()).expect("a data directory");
            let storage = Storage::open(&settings).expect("a storage");
            let key = dir.path().join("key");
            let catalog =
                Catalog::open(&settings.catalog_url(), &key, storage.data_path()).await.expect("a catalog");
            Engine::start(&settings, data_dir, storage, Arc::new(catalog), Clock::System)
                .await
                .expect("an engine")
        });
        Bench { ingest: Ingest::new(engine), runtime, _dir: dir }
    })
}

/// The libraries of Arrow and Parquet panic on some damaged bodies. The engine catches that and refuses the body; a fuzzer would end at it.
fn bear_panics_of_libraries() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let before = std::panic::take_hook();
        // Bodies are decoded on threads of that name.
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some("tokio-rt-worker") {
                before(info);
            }
        }));
    });
}

fn decode(part: Part) {
    let is_ours =
        !matches!(part.format, BodyFormat::ArrowStream | BodyFormat::Parquet) || part.lines.is_some();
    if !is_ours {
        bear_panics_of_libraries();
    }
    let Bench { runtime, ingest, .. } = bench();
    let request = IngestRequest {
        format: part.format,
        body: part.body,
        precision: Some(TimePrecision::Auto),
        is_atomic: false,
        site: "fuzz".to_owned(),
        mapping: None,
        allowed_sites: Vec::new(),
        is_dry_run: true,
        errors_max: 100,
    };
    if let Err(error) = runtime.block_on(ingest.decode_part(request)) {
        // A decoder of ours that panics is caught there, and is what is looked for here.
        assert!(!is_ours || !error.message.contains("its decoder failed"), "{error}");
    }
}

/// Decodes bytes as the format or profile of this name, as `wattlake import --format` does.
fn decode_file(format: &str, bytes: &[u8]) {
    let _ = FileFormat::detect(bytes);
    let format: FileFormat = format.parse().expect("a format");
    let options = FileOptions {
        zone: parse_zone("Europe/Berlin").ok(),
        stem: "meter".to_owned(),
        ..FileOptions::default()
    };
    let Ok(parts) = Parts::of_file(Cursor::new(bytes.to_vec()), format, &options, None, 4096) else { return };
    for part in parts {
        match part {
            Ok(part) => decode(part),
            Err(_) => break,
        }
    }
}

/// Decodes bytes as a body of a request.
fn decode_body(format: BodyFormat, bytes: &[u8]) {
    decode(Part {
        body: Body::Bytes(Bytes::copy_from_slice(bytes)),
        format,
        first_row: 0,
        lines: None,
        refused: Vec::new(),
    });
}

/// Decodes bytes as the fuzz target of this name does.
pub fn decode_target(target: &str, bytes: &[u8]) {
    match target.strip_prefix("body_") {
        Some("json") => decode_body(BodyFormat::Json, bytes),
        Some("arrow") => decode_body(BodyFormat::ArrowStream, bytes),
        Some("parquet") => decode_body(BodyFormat::Parquet, bytes),
        _ => decode_file(&target.replace('_', "-"), bytes),
    }
}
