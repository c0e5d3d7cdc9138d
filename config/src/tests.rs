use std::io::Write;

use super::*;

fn layers(assignments: &[&str]) -> Layers {
    Layers { assignments: assignments.iter().map(|s| (*s).to_owned()).collect(), ..Layers::default() }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(text.as_bytes()).expect("write");
    file
}

#[test]
fn defaults_are_valid() {
    assert_eq!(Layers::default().load().expect("valid"), Settings::default());
}

#[test]
fn later_layers_win() {
    let file = file("[http]\nlisten = \"127.0.0.1:1\"\n[flush]\nmax_bytes = \"8MiB\"\ninterval = \"1s\"\n");
    let settings = Layers {
        file: Some(file.path().to_owned()),
        environment: vec![
            ("WATTLAKE_HTTP__LISTEN".into(), "127.0.0.1:2".into()),
            ("WATTLAKE_FLUSH__INTERVAL".into(), "2s".into()),
            ("WATTLAKE_PORT".into(), "tcp://10.0.0.1:80".into()),
            ("HOME".into(), "/".into()),
        ],
        assignments: vec!["http.listen=127.0.0.1:3".into(), "ingest.auto_register=false".into()],
    }
    .load()
    .expect("valid");
    assert_eq!(settings.http.listen, "127.0.0.1:3");
    assert_eq!(settings.flush.interval, Period::secs(2));
    assert_eq!(settings.flush.max_bytes, ByteCount::mib(8));
    assert!(!settings.ingest.auto_register);
}

#[test]
fn unknown_keys_name_the_nearest() {
    let error = layers(&["http.lissten=1"]).load().expect_err("unknown").to_string();
    assert!(error.contains("`http.lissten`") && error.contains("`http.listen`"), "{error}");
    let file = file("[querry]\ntimeout = \"1s\"\n");
    let error =
        Layers { file: Some(file.path().to_owned()), ..Layers::default() }.load().expect_err("unknown");
    assert!(error.to_string().contains("`querry`"), "{error}");
    let error =
        Layers { environment: vec![("WATTLAKE_QUERY__TIMEOUTS".into(), "1s".into())], ..Layers::default() }
            .load()
            .expect_err("unknown")
            .to_string();
    assert!(error.contains("WATTLAKE_QUERY__TIMEOUTS") && error.contains("query.timeout"), "{error}");
}

#[test]
fn bad_values_name_key_and_choice() {
    for (assignment, parts) in [
        ("flush.interval=soon", ["flush.interval", "10s"]),
        ("flush.max_bytes=big", ["flush.max_bytes", "64MiB"]),
        ("time_zone=Mars/Base", ["time_zone", "Europe/Berlin"]),
        ("wal.durability=maybe", ["wal.durability", "durable"]),
        ("http.listen=8787", ["http.listen", "127.0.0.1:8787"]),
        ("catalog.url=mysql://x", ["catalog.url", "postgres://"]),
        ("storage.url=ftp://x", ["storage.url", "s3://bucket"]),
        ("query.max_rows=0", ["query.max_rows", "zero"]),
        ("postgres.listen=5488", ["postgres.listen", "empty"]),
        ("memory.budget=1MiB", ["memory.budget", "flush.max_bytes"]),
        ("tls.cert=chain.pem", ["tls.cert", "tls.key"]),
        ("snapshots.grace=1s", ["snapshots.grace", "query.timeout"]),
        ("retention=[{ keep = \"1s\" }]", ["retention[0].keep", "hour"]),
    ] {
        let error = layers(&[assignment]).load().expect_err(assignment).to_string();
        for part in parts {
            assert!(error.contains(part), "{assignment}: {error}");
        }
    }
    assert!(layers(&["nonsense"]).load().expect_err("no =").to_string().contains("key.path=value"));
}

#[test]
fn secrets_are_not_printed() {
    let settings = layers(&["storage.s3.secret_key=hunter2", "catalog.url=postgres://u:pw1@h/db"]).load();
    let settings = settings.expect("valid");
    let text = settings.to_redacted_toml() + &format!("{:?}", settings.storage);
    assert!(!text.contains("hunter2") && !text.contains("pw1"), "{text}");
    assert!(text.contains("postgres://u:***@h/db"), "{text}");
}

/// The commented example in `config/` shows every setting with its default.
#[test]
fn example_file_shows_the_defaults() {
    let text = include_str!("../wattlake.example.toml");
    let uncommented: String = text
        .lines()
        .map(|line| line.strip_prefix("#:").map_or(line, str::trim_start))
        .fold(String::new(), |all, line| all + line + "\n");
    let file = file(&uncommented);
    let settings = Layers { file: Some(file.path().to_owned()), ..Layers::default() }.load().expect("valid");
    let example: toml::Table = uncommented.parse().expect("toml");
    let defaults = toml::Table::try_from(Settings::default()).expect("toml");
    for (section, value) in &defaults {
        let Some(table) = value.as_table() else {
            assert!(example.contains_key(section), "{section} is missing in the example");
            continue;
        };
        for key in table.keys() {
            let present = example.get(section).and_then(|s| s.get(key)).is_some();
            assert!(present, "{section}.{key} is missing in the example");
        }
    }
    let without_samples = Settings {
        metrics: Default::default(),
        retention: Vec::new(),
        ingest: Ingest { mappings: Vec::new(), ..settings.ingest.clone() },
        ..settings
    };
    assert_eq!(without_samples, Settings::default());
}

#[test]
fn quantities_round_trip() {
    for text in ["64MiB", "1GiB", "1500B", "3KiB"] {
        assert_eq!(text.parse::<ByteCount>().expect(text).to_string(), text);
    }
    for text in ["500ms", "5m", "1h30m"] {
        assert_eq!(text.parse::<Period>().expect(text).to_string(), text);
    }
}
