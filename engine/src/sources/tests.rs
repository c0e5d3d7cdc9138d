//! What holds for every connector.

use serde_json::json;

use super::*;
use crate::sources::{
    connector::Window,
    cursor::{Cursor, DAY},
    settings::SourceSettings,
};

/// A source of each provider.
fn connectors() -> Vec<SourceSettings> {
    let now = Timestamp::UNIX_EPOCH;
    let settings = |metadata: Value| {
        let source = EnergySource {
            id: EntityId(Uuid::from_u128(7)),
            meter_id: EntityId(Uuid::nil()),
            name: "x".into(),
            source_type: "solar".into(),
            capacity: None,
            metadata: metadata.as_object().cloned().expect("an object"),
            active: true,
            created_at: now,
            updated_at: now,
        };
        SourceSettings::read(&source, &TimeZone::UTC).expect("sound settings")
    };
    let preset = |name: &str| {
        settings(
            json!({ "useAPI": true, "apiProvider": "http_json", "baseUrl": "http://10.0.0.1", "local": true, "preset": name,
            "auth": { "kind": "bearer", "token": "canary-key" } }),
        )
    };
    vec![
        settings(
            json!({ "useAPI": true, "apiProvider": "solaredge", "systemId": "1", "apiKey": "canary-key",
            "streams": ["energy", "power", "meters", "storage", "inverters", "days"] }),
        ),
        settings(
            json!({ "useAPI": true, "apiProvider": "enphase", "systemId": "1", "apiKey": "canary-key", "clientId": "c",
            "clientSecret": "canary-secret", "refreshToken": "canary-token",
            "streams": ["production", "micros", "consumption", "battery", "import", "export", "days"] }),
        ),
        settings(
            json!({ "useAPI": true, "apiProvider": "http_json", "baseUrl": "http://10.0.0.1", "local": true, "preset": "fronius",
            "auth": { "kind": "bearer", "token": "canary-key" } }),
        ),
        settings(
            json!({ "useAPI": true, "apiProvider": "http_json", "baseUrl": "http://10.0.0.1", "local": true, "preset": "shelly_gen2", "auth": { "kind": "bearer", "token": "canary-key" } }),
        ),
        settings(
            json!({ "useAPI": true, "apiProvider": "http_json", "baseUrl": "http://10.0.0.1", "local": true, "preset": "homewizard", "auth": { "kind": "bearer", "token": "canary-key" } }),
        ),
        settings(
            json!({ "useAPI": true, "apiProvider": "http_json", "baseUrl": "http://10.0.0.1", "local": true, "preset": "fronius",
            "streams": ["meter", "inverter", "archive"], "auth": { "kind": "bearer", "token": "canary-key" } }),
        ),
        settings(
            json!({ "useAPI": true, "apiProvider": "http_json", "baseUrl": "http://10.0.0.1", "local": true, "preset": "iq_gateway",
            "streams": ["production", "registers", "batteries", "inverters"], "auth": { "kind": "bearer", "token": "canary-key" } }),
        ),
        preset("homewizard_v2"),
        preset("homewizard_battery"),
        preset("opendtu"),
        preset("powerwall"),
        preset("tasmota"),
    ]
}

/// No reading comes of an answer that is none; it moves no cursor, and what is said of it is short and tells no secret.
#[test]
fn bad_bodies_are_no_readings_for_any_connector() {
    let long = "x".repeat(100_000);
    let deep = "[".repeat(100) + &"]".repeat(100);
    let bodies: Vec<String> = [
        "null",
        "true",
        "false",
        "0",
        "-1",
        "1e308",
        "\"\"",
        "\"text\"",
        "[]",
        "[[]]",
        "[null]",
        "[1,2,3]",
        "[{}]",
        "{}",
        "{\"\":\"\"}",
        "{\"error\":\"nothing\"}",
        "{\"values\":null}",
        "{\"values\":[]}",
        "{\"values\":[null]}",
        "{\"values\":{}}",
        "{\"values\":\"x\"}",
        "{\"intervals\":null}",
        "{\"intervals\":{}}",
        "{\"intervals\":[null]}",
        "{\"intervals\":[[null]]}",
        "{\"intervals\":[{\"end_at\":null}]}",
        "{\"intervals\":[{\"end_at\":1.5}]}",
        "{\"intervals\":\"x\"}",
        "{\"production\":[\"x\"],\"start_date\":\"2026-01-01\"}",
        "{\"production\":[1],\"start_date\":\"soon\"}",
        "{\"production\":{},\"start_date\":\"2026-01-01\"}",
        "{\"inverters\":[]}",
        "{\"inverters\":{\"a\":{\"power\":7}}}",
        "{\"meters\":null}",
        "{\"meters\":{\"a\":{\"importEnergy\":{\"unit\":\"WH\"}}}}",
        "{\"storage\":\"x\"}",
        "{\"Body\":{}}",
        "{\"Body\":{\"Data\":[]},\"Head\":{\"Status\":{\"Code\":0}}}",
        "{\"keys\":[],\"data\":{}}",
        "{\"em:0\":[],\"canary-key\":1}",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain([format!("{{\"{long}\":\"{long}\"}}"), deep])
    .collect();
    assert!(bodies.len() >= 40);
    for settings in connectors() {
        for stream in settings.connector.streams() {
            for body in &bodies {
                let value: Value = serde_json::from_str(body).expect("JSON");
                let window = Window { from: 100 * DAY, to: 101 * DAY };
                match settings.connector.decode(&stream, window, &value) {
                    Err(failure) => {
                        let words = settings.secrets.redact(&failure.message);
                        assert_eq!(failure.class, Class::BadPayload, "{stream:?} {body}: {failure}");
                        assert!(words.len() <= 512 && !words.contains("canary"), "{words}");
                    }
                    // Nothing is in it: the cursor stays.
                    Ok(decoded) => {
                        assert!(decoded.points.is_empty() && decoded.empty.is_empty(), "{stream:?} {body}");
                        let mut cursor = Cursor::first(&stream, 101 * DAY);
                        let before = cursor.clone();
                        cursor.advance(decoded.points.iter().map(|point| point.ts).max());
                        assert_eq!(cursor, before);
                    }
                }
            }
        }
    }
}
