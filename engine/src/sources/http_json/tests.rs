//! Presets, against answers of real devices where those are there.

use super::*;
use crate::sources::{SECOND, connector::Quantity};

fn device(name: &str) -> HttpJson {
    HttpJson {
        base: "http://192.168.1.20/".parse().expect("a url"),
        is_local: true,
        system: "12".into(),
        zone: TimeZone::get("Europe/Berlin").expect("a zone"),
        authorisation: Authorisation::None,
        pin: None,
        requests: preset(name).expect("a preset"),
    }
}

const NOW: i64 = 1_780_000_000 * SECOND;

/// Metric, seconds since 1970, value, unit of each reading of a preset's stream.
fn readings(name: &str, stream: usize, body: &str) -> Vec<(&'static str, i64, f64, &'static str)> {
    let device = device(name);
    let stream = device.streams()[stream];
    let window = Window { from: 0, to: NOW };
    let body = serde_json::from_str(body).expect("JSON");
    let decoded = device.decode(&stream, window, &body).expect("readings");
    decoded.points.iter().map(|p| (p.quantity.metric(), p.ts / SECOND, p.value, p.unit)).collect()
}

#[test]
fn presets_are_sound() {
    for (name, _) in PRESETS {
        let device = device(name);
        assert!(!device.streams().is_empty(), "{name}");
        assert_eq!(device.probe().url.host_str(), Some("192.168.1.20"), "{name}");
    }
    let words = preset("froniu").expect_err("no such preset");
    assert!(words.contains("fronius, homewizard"), "{words}");
}

#[test]
fn a_device_says_how_it_stands() {
    let body = r#"{"Body":{"Data":{"Inverters":{"1":{"P":186.5,"SOC":4.6}},"Site":{"E_Total":7512664.4,"P_Akku":null,
        "P_Grid":2274.9,"P_Load":-2459.3,"P_PV":0}}},"Head":{"Status":{"Code":0},"Timestamp":"2021-11-28T13:12:20+00:00"}}"#;
    let at = 1_638_105_140;
    assert_eq!(
        readings("fronius", 0, body),
        [
            ("power", at, 0.0, "W"),
            ("energy_total", at, 7_512_664.4, "Wh"),
            ("grid_power", at, 2274.9, "W"),
            ("consumption_power", at, 2459.3, "W"),
            ("soc", at, 4.6, "%"),
        ]
    );
    let refused = body.replace("\"Code\":0", "\"Code\":8");
    let device = device("fronius");
    let failure = device
        .decode(
            &device.streams()[0],
            Window { from: 0, to: NOW },
            &serde_json::from_str(&refused).expect("JSON"),
        )
        .expect_err("an error in a success");
    assert!(
        failure.class == Class::BadPayload && failure.message.contains("$.Head.Status.Code = 8"),
        "{failure}"
    );
    let body = r#"{"active_tariff":2,"total_power_import_kwh":13779.338,"total_power_export_kwh":0,"active_power_w":-543}"#;
    assert_eq!(
        readings("homewizard", 0, body),
        [
            ("grid_power", NOW / SECOND, -543.0, "W"),
            ("import_energy_total", NOW / SECOND, 13_779.338, "kWh"),
            ("export_energy_total", NOW / SECOND, 0.0, "kWh"),
        ]
    );
    let body =
        r#"{"StatusSNS":{"Time":"2026-01-01T12:00:00","ENERGY":{"Total":12.5,"Power":40,"Voltage":230}}}"#;
    let found = readings("tasmota", 0, body);
    assert_eq!(found[0], ("power", 1_767_265_200, 40.0, "W"));
    // A yield of nothing at all is a device that has just woken up.
    let body = r#"{"total":{"Power":{"v":12.5,"u":"W"},"YieldTotal":{"v":0.0,"u":"kWh"}}}"#;
    assert_eq!(readings("opendtu", 0, body), [("power", NOW / SECOND, 12.5, "W")]);
}

#[test]
fn a_device_with_a_memory_is_asked_for_it() {
    let device = device("shelly_gen2");
    let minutes = device.streams()[1];
    assert!(!minutes.is_instant && minutes.cadence == 60 && minutes.horizon == Some(9 * 86_400));
    let window = Window { from: 1_656_356_400 * SECOND, to: 1_656_363_600 * SECOND };
    let call = device.call(&minutes, window, false);
    assert_eq!(
        call.url.as_str(),
        "http://192.168.1.20/rpc/EMData.GetData?add_keys=true&end_ts=1656363600&id=0&ts=1656356400"
    );
    let body = r#"{"keys":["a_total_act_energy","a_total_act_ret_energy","b_total_act_energy","b_total_act_ret_energy",
        "c_total_act_energy","c_total_act_ret_energy"],"data":[{"ts":1656356400,"period":60,
        "values":[[1.5,0.0,2.0,0.25,3.0,0.0],[1.0,0.0,null,0.0,1.0,0.0]]}]}"#;
    assert_eq!(
        readings("shelly_gen2", 1, body),
        [
            ("import_energy", 1_656_356_400, 6.5, "Wh"),
            ("export_energy", 1_656_356_400, 0.25, "Wh"),
            ("export_energy", 1_656_356_460, 0.0, "Wh"),
        ]
    );
}

/// Answers of real devices.
#[test]
fn real_answers_are_understood() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}"));
    let Ok(symo) = read("fronius/ha_symo_GetPowerFlowRealtimeData.json") else { return };
    let found = readings("fronius", 0, &symo);
    assert_eq!(found[0], ("power", 1_633_593_643, 1111.0, "W"));
    assert_eq!(found[2], ("grid_power", 1_633_593_643, 1703.74, "W"));
    let gateway = read("enphase_iq_gateway/7.6.175_ct/production.json").expect("an answer");
    let found = readings("iq_gateway", 0, &gateway);
    assert_eq!(found[0], ("power", 1_693_745_129, 488.154, "W"));
    assert_eq!(found[1], ("energy_total", 1_693_745_129, 3_183_793.303, "Wh"));
    assert!(
        found.iter().any(|(metric, _, value, _)| *metric == "grid_power" && *value == -11.468),
        "{found:?}"
    );
    let meter = read("homewizard/v1_HWE-P1_data_all_data.json").expect("an answer");
    assert!(readings("homewizard", 0, &meter).iter().any(|(metric, ..)| *metric == "import_energy_total"));
    let shelly: Value = serde_json::from_str(
        &read("shelly/gen2_Shelly_Pro_3EM_SPEM-003CEBEU_20231219-134001-1.1.0-g34b5d4f.json")
            .expect("an answer"),
    )
    .expect("JSON");
    let found = readings("shelly_gen2", 0, &shelly["status"].to_string());
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn requests_stay_at_their_host_and_are_checked() {
    let mut device = device("homewizard");
    let written = serde_json::json!([{ "name": "x", "path": "//evil.example/{systemId}/{from:%Y-%m-%d}?a=1",
        "query": { "until": "{to:rfc3339}", "odd": "{braces" }, "map": [{ "values": [{ "metric": "power", "path": "$.p", "unit": "W" }] }] }]);
    device.requests = requests(&written).expect("valid");
    let window = Window { from: 1_767_222_000 * SECOND, to: 1_767_225_600 * SECOND };
    let call = device.call(&device.streams()[0], window, false);
    assert_eq!(
        call.url.as_str(),
        "http://192.168.1.20/evil.example/12/2026-01-01?a=1&odd=%7Bbraces&until=2026-01-01T00%3A00%3A00Z"
    );
    for (written, words) in [
        (serde_json::json!([]), "1 to 32"),
        (
            serde_json::json!([{ "name": "x", "path": "/", "map": [{ "rows": "$.[", "values": [] }] }]),
            "JSONPath",
        ),
        (serde_json::json!([{ "name": "x", "path": "/", "maps": [] }]), "maps"),
        (
            serde_json::json!([{ "name": "x", "path": "/", "window": { "cadence": "often", "span": "1d" }, "map": [] }]),
            "often",
        ),
    ] {
        let error = requests(&written).expect_err("refused");
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(Quantity::named("power", None).metric(), "power");
}
