//! Answers in the documented shape, and real ones where they are there.

use bytes::Bytes;
use reqwest::header::HeaderMap;

use super::*;

fn api(zone: &str) -> SolarEdge {
    SolarEdge {
        base: BASE.parse().expect("a url"),
        is_local: false,
        site: "123".into(),
        zone: TimeZone::get(zone).expect("a zone"),
        access: Access::Key("key-of-a-fleet".into()),
        streams: STREAMS.iter().map(|stream| stream.name.to_owned()).collect(),
    }
}

fn stream(name: &str) -> Stream {
    STREAMS.into_iter().find(|stream| stream.name == name).expect("a stream")
}

fn micros(text: &str) -> i64 {
    text.parse::<Timestamp>().expect("a time").as_microsecond()
}

fn window(from: &str, to: &str) -> Window {
    Window { from: micros(from), to: micros(to) }
}

/// Quantity, device, time, value, unit of each reading.
fn readings(decoded: &Decoded) -> Vec<(Quantity, Option<&str>, String, f64, &str)> {
    let text = |ts| Timestamp::from_microsecond(ts).expect("a time").to_string();
    let points = decoded.points.iter();
    points.map(|p| (p.quantity, p.device.as_deref(), text(p.ts), p.value, p.unit)).collect()
}

fn decode(name: &str, window: Window, body: &str) -> Result<Decoded, CallFailure> {
    let body = serde_json::from_str(body).expect("JSON");
    api("Europe/Dublin").decode(&stream(name), window, &body)
}

#[test]
fn windows_are_asked_in_local_time_unless_that_is_ambiguous() {
    let api = api("Europe/Berlin");
    let asked = |from, to, in_utc| {
        let call = api.call(&stream("energy"), window(from, to), in_utc);
        let query: Vec<_> = call.url.query_pairs().map(|(name, value)| format!("{name}={value}")).collect();
        (call.url.path().to_owned(), query.join("&"))
    };
    assert_eq!(
        asked("2026-06-01T10:00:00Z", "2026-06-01T22:00:00Z", false),
        (
            "/v2/sites/123/energy".into(),
            "from=2026-06-01T12:00:00&to=2026-06-01T23:59:59&resolution=QUARTER_HOUR&unit=WH".into()
        )
    );
    // The clock shows 02:30 twice.
    let (_, query) = asked("2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", false);
    assert!(query.starts_with("from=2026-10-25T02:30:00+02:00&to=2026-10-25T02:29:59+01:00"), "{query}");
    let (_, query) = asked("2026-06-01T10:00:00Z", "2026-06-01T22:00:00Z", true);
    assert!(query.starts_with("from=2026-06-01T10:00:00Z&to=2026-06-01T21:59:59Z"), "{query}");
}

#[test]
fn intervals_are_instants_and_the_open_one_is_empty() {
    let body = r#"{"period":{"from":"2026-10-25T02:30:00+02:00","to":"2026-10-25T02:45:10.016061916+01:00"},"unit":"KWH",
        "resolution":"QUARTER_HOUR","values":[
        {"timestamp":"2026-10-25T02:30:00+02:00","value":0.5},{"timestamp":"2026-10-25T02:45:00+02:00","value":0},
        {"timestamp":"2026-10-25T02:00:00+01:00","value":0.25},{"timestamp":"2026-10-25T02:45:00+01:00","value":null}]}"#;
    let found =
        decode("energy", window("2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z"), body).expect("readings");
    assert_eq!(
        readings(&found),
        [
            (Quantity::Energy, None, "2026-10-25T00:30:00Z".into(), 0.5, "kWh"),
            (Quantity::Energy, None, "2026-10-25T00:45:00Z".into(), 0.0, "kWh"),
            (Quantity::Energy, None, "2026-10-25T01:00:00Z".into(), 0.25, "kWh"),
        ]
    );
    assert_eq!(found.empty, [(Quantity::Energy, None, micros("2026-10-25T01:45:00Z"))]);
    assert!(!found.misread_times);
    // The answer begins an hour from what was asked for.
    let found =
        decode("energy", window("2026-10-25T01:30:00Z", "2026-10-25T02:00:00Z"), body).expect("readings");
    assert!(found.misread_times);
}

#[test]
fn devices_are_told_apart_and_meters_together() {
    let body = r#"{"inverters":{"7E-1":{"power":{"unit":"KW","values":[{"timestamp":"2026-09-29T12:15:00-05:00","value":4.25}]},
        "voltage":{"unit":"VOLT","values":[{"timestamp":"2026-09-29T12:30:00-05:00","value":241.2}]},
        "somethingNew":{"unit":"FURLONG","values":[]}}}}"#;
    let day = window("2026-09-29T05:00:00Z", "2026-09-30T05:00:00Z");
    let found = decode("inverters", day, body).expect("readings");
    assert_eq!(
        readings(&found),
        [
            (Quantity::Power, Some("7E-1"), "2026-09-29T17:15:00Z".into(), 4.25, "kW"),
            // It carries the end of its interval.
            (Quantity::Voltage, Some("7E-1"), "2026-09-29T17:15:00Z".into(), 241.2, "V"),
        ]
    );
    let body = r#"{"meters":{"A":{"importEnergy":{"unit":"WH","values":[{"timestamp":"2026-09-29T12:15:00-05:00","value":100}]}},
        "B":{"importEnergy":{"unit":"WH","values":[{"timestamp":"2026-09-29T12:15:00-05:00","value":20.5}]},
        "productionEnergy":{"unit":"WH","values":[{"timestamp":"2026-09-29T12:15:00-05:00","value":1500}]}}}}"#;
    let found = decode("meters", day, body).expect("readings");
    assert_eq!(
        readings(&found),
        [(Quantity::ImportEnergy, None, "2026-09-29T17:15:00Z".into(), 120.5, "Wh")]
    );
    let body = r#"{"storage":{"1":{"stateOfEnergy":{"unit":"PERCENTAGE","values":[{"timestamp":"2026-09-29T12:30:00-05:00","value":60}]}},
        "2":{"stateOfEnergy":{"unit":"PERCENTAGE","values":[{"timestamp":"2026-09-29T12:30:00-05:00","value":70}]}}}}"#;
    let found = decode("storage", day, body).expect("readings");
    assert_eq!(readings(&found), [(Quantity::StateOfCharge, None, "2026-09-29T17:30:00Z".into(), 65.0, "%")]);
}

#[test]
fn answers_of_another_shape_are_no_readings() {
    let bodies = [
        r"{}",
        r"[]",
        r"null",
        r"7",
        r#"{"unit":"WH"}"#,
        r#"{"unit":"WH","values":{}}"#,
        r#"{"unit":"XYZ","values":[]}"#,
        r#"{"unit":"WH","values":[{"timestamp":"2026-06-01T10:00:00Z"}]}"#,
        r#"{"unit":"WH","values":[{"value":1}]}"#,
        r#"{"unit":"WH","values":[{"timestamp":"2026-06-01T10:00:00","value":1}]}"#,
        r#"{"unit":"WH","values":[{"timestamp":"2026-06-01T10:00:00Z","value":"1"}]}"#,
        r#"{"unit":"WH","values":[{"timestamp":1780000000,"value":1}]}"#,
        r#"{"unit":7,"values":[]}"#,
        r#"{"period":{"from":"yesterday"},"unit":"WH","values":[]}"#,
        r#"{"period":[],"unit":"WH","values":[]}"#,
    ];
    let day = window("2026-06-01T00:00:00Z", "2026-06-02T00:00:00Z");
    for name in ["energy", "power", "meters", "storage", "inverters", "days"] {
        for body in bodies {
            let failure = decode(name, day, body).expect_err(body);
            assert!(
                failure.class == Class::BadPayload && failure.message.len() <= 512,
                "{name} {body}: {failure:?}"
            );
        }
    }
}

#[test]
fn errors_have_their_classes() {
    let class = |status: u16, headers: &[(&'static str, &str)], body: &str, of: Option<&str>| {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
            .collect();
        let answer = Answer { name: "GET x".into(), status, headers, body: Bytes::from(body.to_owned()) };
        let stream = of.map(stream);
        api("UTC").failure(stream.as_ref(), &answer, 0).class
    };
    let remaining = "x-ratelimit-remaining-minute";
    assert_eq!(class(400, &[], "{}", Some("energy")), Class::WindowTooLarge);
    assert_eq!(class(401, &[], r#"{"detail":"Invalid API key"}"#, Some("energy")), Class::AuthDead);
    assert_eq!(class(403, &[], "", Some("meters")), Class::Forbidden);
    assert_eq!(
        class(404, &[], r#"{"detail":"Unknown endpoint","traceId":"6a"}"#, Some("storage")),
        Class::Forbidden
    );
    assert_eq!(class(404, &[], "", None), Class::Refused);
    assert_eq!(class(410, &[], "gone", Some("energy")), Class::Gone);
    assert_eq!(
        class(429, &[("retry-after", "30"), (remaining, "0")], "", None),
        Class::Throttled { until: 30_000_000 }
    );
    assert_eq!(class(429, &[(remaining, "0")], "", None), Class::Throttled { until: 60_000_000 });
    assert_eq!(class(429, &[(remaining, "7")], "", None), Class::QuotaExhausted);
    assert_eq!(class(503, &[], "<html>", Some("energy")), Class::Retry);
    assert_eq!(
        class(503, &[("retry-after", "9")], "", Some("energy")),
        Class::Throttled { until: 9_000_000 }
    );
    let mut by_grant = api("UTC");
    by_grant.access = Access::Grant { client_id: "c".into(), client_secret: "s".into() };
    let answer = Answer { name: "GET x".into(), status: 401, headers: HeaderMap::new(), body: Bytes::new() };
    assert_eq!(by_grant.failure(None, &answer, 0).class, Class::AuthExpired);
}

/// Captured answers of a real site.
#[test]
fn real_answers_are_understood() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/solaredge_v2_live");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}.json"));
    let Ok(power) = read("power") else { return };
    let day = window("2026-08-23T23:00:00Z", "2026-08-24T16:15:00Z");
    let found = decode("power", day, &power).expect("readings");
    assert_eq!((found.points.len(), found.empty.len(), found.misread_times), (44, 25, false));
    let last = readings(&found).pop().expect("a reading");
    assert_eq!(last, (Quantity::Power, None, "2026-08-24T15:45:00Z".into(), 982.2318, "W"));
    let found = decode("energy", day, &read("energy").expect("the energies")).expect("readings");
    let total: f64 = found.points.iter().map(|point| point.value).sum();
    assert!((total - 26_290.0).abs() < 1e-6, "{total}");
    assert_eq!(readings(&found).pop().expect("a reading").3, 259.0);
}

/// Answers that a third party made from the vendor's examples.
#[test]
fn documented_answers_are_understood() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/solaredge_v2_documented_shape");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}.json"));
    let Ok(inverters) = read("inverters_telemetry") else { return };
    let day = window("2026-09-29T05:00:00Z", "2026-09-30T05:00:00Z");
    let found = decode("inverters", day, &inverters).expect("readings");
    let serial = Some("7E1234B5-67");
    assert_eq!(
        readings(&found),
        [
            (Quantity::Power, serial, "2026-09-29T17:15:00Z".into(), 4.25, "kW"),
            (Quantity::Power, serial, "2026-09-29T17:30:00Z".into(), 4.31, "kW"),
            (Quantity::Energy, serial, "2026-09-29T17:15:00Z".into(), 1062.6, "Wh"),
            (Quantity::Energy, serial, "2026-09-29T17:30:00Z".into(), 1077.7, "Wh"),
            (Quantity::Voltage, serial, "2026-09-29T17:15:00Z".into(), 241.2, "V"),
            (Quantity::Current, serial, "2026-09-29T17:30:00Z".into(), 17.9, "A"),
            (Quantity::Frequency, serial, "2026-09-29T17:15:00Z".into(), 60.01, "Hz"),
        ]
    );
    let found = decode("storage", day, &read("storage_telemetry").expect("the battery")).expect("readings");
    assert_eq!(
        readings(&found),
        [
            (Quantity::ChargePower, None, "2026-09-29T17:15:00Z".into(), 3000.0, "W"),
            (Quantity::ChargePower, None, "2026-09-29T17:30:00Z".into(), 2750.0, "W"),
            (Quantity::StateOfCharge, None, "2026-09-29T17:30:00Z".into(), 67.8, "%"),
        ]
    );
    // Production is that of the site's own answers.
    assert_eq!(
        decode("meters", day, &read("meters_telemetry").expect("the meters")).expect("readings").points,
        []
    );
    let site = serde_json::from_str(&read("site").expect("the site")).expect("JSON");
    let systems = api("UTC").listed(&Value::Array(vec![site])).expect("a system");
    assert_eq!((systems[0].system_id.as_str(), systems[0].capacity), ("1234567", Some(7.6)));
    assert_eq!(systems[0].timezone.as_deref(), Some("America/Chicago"));
}
