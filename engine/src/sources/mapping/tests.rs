//! Every form of rows that vendors have.

use serde_json::json;

use super::*;

const NOW: i64 = 1_780_000_000 * SECOND;

fn apply(mapping: &Value, body: &Value) -> Mapped {
    let mapping: Mapping = serde_json::from_value(mapping.clone()).expect("a mapping");
    let mut mapped = Mapped::default();
    mapping.apply(body, &TimeZone::get("Europe/Berlin").expect("a zone"), NOW, &mut mapped);
    mapped
}

/// Metric, device, seconds since 1970, value, unit.
fn readings(mapping: &Value, body: &Value) -> Vec<(&'static str, Option<String>, i64, f64, &'static str)> {
    let points = apply(mapping, body).points;
    points.into_iter().map(|p| (p.quantity.metric(), p.device, p.ts / SECOND, p.value, p.unit)).collect()
}

#[test]
fn a_map_of_devices_and_metrics_with_units_beside() {
    let mapping = json!({
        "rows": "$.inverters.*.*.values[*]",
        "device": "{key(1)}",
        "time": { "path": "$.timestamp", "format": "rfc3339" },
        "values": [{ "metric": "{key(2)}", "path": "$.value", "unitPath": "$parent(2).unit" }],
    });
    let body = json!({ "inverters": { "7E-1": {
        "power": { "unit": "KW", "values": [{ "timestamp": "2026-01-01T00:00:00Z", "value": 4.25 }, { "timestamp": "2026-01-01T00:15:00Z", "value": null }] },
        "energy": { "unit": "WH", "values": [{ "timestamp": "2026-01-01T00:00:00Z", "value": 1062.6 }] },
    } } });
    assert_eq!(
        readings(&mapping, &body),
        [
            ("power", Some("7E-1".into()), 1_767_225_600, 4.25, "kW"),
            ("energy", Some("7E-1".into()), 1_767_225_600, 1062.6, "Wh"),
        ]
    );
}

#[test]
fn keys_that_count_seconds_or_days() {
    let mapping = json!({
        "rows": "$.Data.Values.*",
        "time": { "path": "$root.Start", "format": "rfc3339", "plusKey": true, "step": "1s" },
        "values": [{ "metric": "energy", "path": "$", "unitPath": "$parent(2).Unit" }],
    });
    let body = json!({ "Start": "2026-01-01T00:00:00+01:00", "Data": { "Unit": "Wh", "Values": { "0": 13, "300": 14.5 } } });
    assert_eq!(
        readings(&mapping, &body),
        [("energy", None, 1_767_222_000, 13.0, "Wh"), ("energy", None, 1_767_222_300, 14.5, "Wh")]
    );
    let mapping = json!({
        "rows": "$.production[*]",
        "time": { "path": "$root.start_date", "format": "%Y-%m-%d", "plusKey": true, "step": "1d" },
        "values": [{ "metric": "day_energy", "path": "$", "unit": "Wh" }],
    });
    let days: Vec<_> = readings(&mapping, &json!({ "start_date": "2026-03-29", "production": [1, 2] }))
        .iter()
        .map(|r| r.2)
        .collect();
    // The 29th had 23 hours.
    assert_eq!(days[1] - days[0], 23 * 3600);
}

#[test]
fn nested_arrays_ends_of_intervals_and_pairs() {
    let mapping = json!({
        "rows": "$.intervals[*][*]",
        "time": { "path": "$.end_at", "format": "epoch_s", "label": "end", "length": "15min" },
        "values": [{ "metric": "import_energy", "path": "$.wh_imported", "unit": "Wh" }],
    });
    let body = json!({ "intervals": [[{ "end_at": 1_496_527_200, "wh_imported": 40 }, { "end_at": 1_496_528_100, "wh_imported": 41 }]] });
    let times: Vec<_> = readings(&mapping, &body).iter().map(|r| r.2).collect();
    assert_eq!(times, [1_496_526_300, 1_496_527_200]);
    let mapping = json!({
        "rows": "$.records.Pdc[*]", "time": { "path": "$[0]", "format": "epoch_ms" },
        "values": [{ "metric": "energy", "path": "$[1]", "unit": "kWh", "min": 0, "max": 100 }],
    });
    let found = apply(
        &mapping,
        &json!({ "records": { "Pdc": [[1_700_000_000_000i64, 1.23], [1_700_000_900_000i64, 1e6]] } }),
    );
    assert_eq!(
        found.points.iter().map(|p| (p.ts, p.quality)).collect::<Vec<_>>(),
        [(1_700_000_000 * SECOND, Quality::Good), (1_700_000_900 * SECOND, Quality::Bad)]
    );
}

#[test]
fn filters_numbers_in_texts_and_sentinels() {
    let mapping = json!({
        "rows": "$.meters[?@.kind == 'net']",
        "values": [
            { "metric": "grid_power", "path": "$.w", "unit": "W", "scale": -1 },
            { "metric": "soc", "path": "$.soc", "unit": "%", "parse": "number_prefix" },
            { "metric": "house_power", "path": "$.hex", "unit": "W", "parse": "hex_f32" },
            { "metric": "temperature", "path": "$.t", "unit": "degC", "nullValues": [-1000000, "unknown"] },
        ],
    });
    let body = json!({ "meters": [{ "kind": "total", "w": 7 },
        { "kind": "net", "w": "12.5", "soc": "97%", "hex": "fl_42C80000", "t": -1000000.0 }] });
    assert_eq!(
        readings(&mapping, &body),
        [
            ("grid_power", None, NOW / SECOND, -12.5, "W"),
            ("soc", None, NOW / SECOND, 97.0, "%"),
            ("house_power", None, NOW / SECOND, 100.0, "W"),
        ]
    );
}

#[test]
fn local_times_of_the_night_in_which_the_clock_goes_back() {
    let zone = TimeZone::get("Europe/Berlin").expect("a zone");
    let local = "2026-10-25T02:30:00".parse().expect("a time");
    let micros = |text: &str| text.parse::<Timestamp>().expect("a time").as_microsecond();
    // At the first one the second has not come yet.
    assert_eq!(
        local_instant(local, &zone, micros("2026-10-25T00:31:00Z")),
        Some(micros("2026-10-25T00:30:00Z"))
    );
    assert_eq!(
        local_instant(local, &zone, micros("2026-10-25T01:31:00Z")),
        Some(micros("2026-10-25T01:30:00Z"))
    );
}

#[test]
fn who_writes_a_mapping_sees_what_it_missed() {
    let mapping = json!({ "rows": "$.a", "values": [
        { "metric": "power", "path": "$.p", "unit": "W" }, { "metric": "energy", "path": "$.enery", "unit": "kWh" }] });
    let body = json!({ "a": { "p": 1, "energy": 2.5, "name": "x" }, "list": [{ "v": 1 }, { "v": 2 }] });
    let mapped = apply(&mapping, &body);
    assert_eq!(mapped.unmatched, ["the value of energy"]);
    assert_eq!(left_over(&body, &mapped), ["$['a']['energy']", "$['list'][0]['v']"]);
    assert_eq!(apply(&json!({ "rows": "$.b[*]", "values": [] }), &body).unmatched, ["rows $.b[*]"]);
}

#[test]
fn texts_of_answers_are_kept_within_limits() {
    let mut answered = Answered(BTreeSet::new());
    for n in 0..Answered::TEXTS_MAX {
        assert!(answered.intern(&format!("text {n}")).is_some());
    }
    assert_eq!((answered.intern("one more"), answered.intern("text 7")), (None, Some("text 7")));
    let mut answered = Answered(BTreeSet::new());
    assert!(answered.intern(&"x".repeat(Answered::CHARS_MAX)).is_some());
    assert_eq!((answered.intern(&"x".repeat(Answered::CHARS_MAX + 1)), answered.intern("")), (None, None));
}
