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
    let mut body = serde_json::from_str(body).expect("JSON");
    if let Some(program) = device.program(&stream, &body).expect("an answer") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        body = Value::Array(runtime.block_on(jq::run(program, &body)).expect("values"));
    }
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
    let at = 1_638_104_813;
    let meter = read("fronius/ha_gen24_storage_GetMeterRealtimeData.json").expect("an answer");
    assert_eq!(
        readings("fronius", 1, &meter),
        [
            ("import_energy_total", at, 1_247_204.0, "Wh"),
            ("export_energy_total", at, 1_705_128.0, "Wh"),
            ("frequency", at, 49.9, "Hz"),
        ]
    );
    let inverter = read("fronius/realtimedata.json").expect("an answer");
    let found = readings("fronius", 2, &inverter);
    assert_eq!(found[0], ("power", 1_725_561_472, 253.714_874_267_578_12, "W"));
    assert_eq!(found[1], ("energy_total", 1_725_561_472, 1_392_623.805_277_777_8, "Wh"));
    assert_eq!(found.len(), 5, "{found:?}");
    // P_PV of the night is null, and no reading.
    let night = read("fronius/example_1.json").expect("an answer");
    let found = readings("fronius", 0, &night);
    assert_eq!(
        found.iter().map(|(metric, ..)| *metric).collect::<Vec<_>>(),
        ["energy_total", "grid_power", "consumption_power", "soc"]
    );
    let gen24 = read("fronius/ha_gen24_storage_GetPowerFlowRealtimeData.json").expect("an answer");
    assert_eq!(
        readings("fronius", 0, &gen24)[3],
        ("battery_power", 1_638_105_140, 0.159_078_106_284_141_54, "W")
    );

    let meter = read("homewizard/v1_HWE-P1_data_all_data.json").expect("an answer");
    // 6 June 2021, 14:00:10 in summer.
    let gas = 1_622_980_810;
    assert_eq!(
        readings("homewizard", 0, &meter),
        [
            ("grid_power", NOW / SECOND, -543.0, "W"),
            ("import_energy_total", NOW / SECOND, 13_779.338, "kWh"),
            ("export_energy_total", NOW / SECOND, 0.0, "kWh"),
            ("frequency", NOW / SECOND, 50.0, "Hz"),
            ("gas_total", gas, 111.111, "m3"),
            ("water_total", gas, 444.444, "m3"),
        ]
    );
    let older = read("homewizard/v1_HWE-P1_data_no_gas.json").expect("an answer");
    let found = readings("homewizard", 0, &older);
    assert_eq!(found[1].2, 10_830.511 + 2948.827);
    assert_eq!(found[2].2, 1285.951 + 2876.51);
    let kwh_meter = read("homewizard/v1_HWE-KWH3_data.json").expect("an answer");
    assert_eq!(
        readings("homewizard", 0, &kwh_meter)[..2],
        [("grid_power", NOW / SECOND, 7100.278, "W"), ("import_energy_total", NOW / SECOND, 2940.101, "kWh"),]
    );
    let invalid = read("homewizard/v1_exceptions_data_invalid_external_data.json").expect("an answer");
    let device = device("homewizard");
    let invalid = serde_json::from_str(&invalid).expect("JSON");
    let failure =
        device.decode(&device.streams()[0], Window { from: 0, to: NOW }, &invalid).expect_err("no reading");
    assert_eq!(failure.class, Class::BadPayload);
    let second =
        read("homewizard/v2_HWE-P1_measurement_3_phase_with_gas_with_watermeter.json").expect("an answer");
    let found = readings("homewizard_v2", 0, &second);
    assert_eq!(found[0], ("grid_power", 1_719_576_754, -543.0, "W"));
    assert_eq!(found[1], ("import_energy_total", 1_719_576_754, 13_779.338, "kWh"));
    let battery = read("homewizard/v2_HWE-BAT_measurement.json").expect("an answer");
    assert_eq!(
        readings("homewizard_battery", 0, &battery),
        [
            ("battery_power", NOW / SECOND, -1234.0, "W"),
            ("charge_energy_total", NOW / SECOND, 123.456, "kWh"),
            ("discharge_energy_total", NOW / SECOND, 321.654, "kWh"),
            ("soc", NOW / SECOND, 50.123, "%"),
        ]
    );

    let both = |folder: &str| {
        let readings =
            read(&format!("enphase_iq_gateway/{folder}/ivp_meters_readings.json")).expect("an answer");
        let meters = read(&format!("enphase_iq_gateway/{folder}/ivp_meters.json")).expect("an answer");
        format!(r#"{{"answer":{readings},"meters":{meters}}}"#)
    };
    let found = readings("iq_gateway", 1, &both("7.6.175_ct"));
    let at = 1_693_745_133;
    assert_eq!(
        found,
        [
            ("voltage", at, 235.236, "V"),
            ("frequency", at, 50.0, "Hz"),
            ("import_energy_total", at, 3_738_205.282, "Wh"),
            ("export_energy_total", at, 1_776_768.769, "Wh"),
        ]
    );
    let found = readings("iq_gateway", 1, &both("8.2.4286_3ct_battery"));
    assert_eq!(found[4], ("discharge_energy_total", 1_722_967_007, 4_073_871.031, "Wh"));
    let batteries =
        read("enphase_iq_gateway/8.2.4286_3ct_battery/ivp_ensemble_power.json").expect("an answer");
    assert_eq!(
        readings("iq_gateway", 2, &batteries),
        [("battery_power", NOW / SECOND, -6592.0, "W"), ("soc", NOW / SECOND, 46.4, "%")]
    );
    assert_eq!(readings("iq_gateway", 2, r#"{"devices:":[]}"#), []);
    let inverters =
        read("enphase_iq_gateway/8.2.4286_3ct_battery/api_v1_production_inverters.json").expect("an answer");
    let found = readings("iq_gateway", 3, &inverters);
    assert_eq!((found[0], found.len()), (("power", 1_722_966_851, 184.0, "W"), 35));

    let powerwall = format!(
        r#"{{"answer":{},"soe":{}}}"#,
        read("tesla_powerwall/api.meters.aggregates.json").expect("an answer"),
        read("tesla_powerwall/api.system_status.soe.json").expect("an answer")
    );
    let found = readings("powerwall", 0, &powerwall);
    assert_eq!(found[0], ("grid_power", 1_702_744_399, 27.0, "W"));
    assert!(found.contains(&("battery_power", 1_702_744_399, -990.0, "W")), "{found:?}");
    assert!(found.contains(&("soc", 1_702_744_399, 20.109_166_592_431_226, "%")), "{found:?}");
    let shelly: Value = serde_json::from_str(
        &read("shelly/gen2_Shelly_Pro_3EM_SPEM-003CEBEU_20231219-134001-1.1.0-g34b5d4f.json")
            .expect("an answer"),
    )
    .expect("JSON");
    let found = readings("shelly_gen2", 0, &shelly["status"].to_string());
    assert_eq!(found.len(), 3, "{found:?}");
}

/// An archive is a map from seconds to values, within one of channels, within one of devices.
#[test]
fn keys_are_times_devices_and_metrics() {
    let body = r#"{"Body":{"Data":{"inverter/1":{"Data":{"EnergyReal_WAC_Sum_Produced":{"Unit":"Wh","Values":{"0":13,"300":15.92},
        "_comment":"x"}},"Start":"2021-07-29T12:05:00+02:00","End":"2021-07-29T12:14:59+02:00"}}},"Head":{"Status":{"Code":0}}}"#;
    let start = 1_627_553_100;
    assert_eq!(
        readings("fronius", 3, body),
        [("energy", start, 13.0, "Wh"), ("energy", start + 300, 15.92, "Wh")]
    );
    let window = Window { from: start * SECOND, to: (start + 3600) * SECOND };
    let device_of = device("fronius");
    let call = device_of.call(&device_of.streams()[3], window, false);
    assert!(
        call.url.query().expect("a query").contains("StartDate=2021-07-29T12%3A05%3A00%2B02%3A00"),
        "{}",
        call.url
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/fixtures/fronius/test_archive_data.json");
    let Ok(archive) = std::fs::read_to_string(path) else { return };
    let mut device = device("fronius");
    device.requests = requests(&serde_json::json!([{ "name": "dc", "path": "/", "map": [{
        "rows": "$.Body.Data.*.Data.*.Values.*", "time": { "path": "$parent(4).Start", "format": "rfc3339", "plusKey": true },
        "values": [{ "metric": "{key(4)}", "path": "$", "unitPath": "$parent(2).Unit" }] }] }])).expect("valid");
    let window = Window { from: 0, to: NOW };
    let decoded = device
        .decode(&device.streams()[0], window, &serde_json::from_str(&archive).expect("JSON"))
        .expect("readings");
    let found: Vec<_> =
        decoded.points.iter().map(|p| (p.quantity.metric(), p.ts / SECOND, p.value, p.unit)).collect();
    assert_eq!(found[0], ("Current_DC_String_1", start, 13.0, "A"));
    assert_eq!(found[3], ("Voltage_DC_String_2", start, 408.900_000_000_000_03, "V"));
}

#[test]
fn a_program_yields_readings_or_is_told_what_is_wrong() {
    let list = serde_json::json!([
        { "metric": "power", "time": 1_700_000_000.5, "value": 1, "unit": "kW", "quality": "estimated" },
        { "metric": "soc", "time": "2026-01-01T00:00:00+01:00", "value": 50.5, "unit": "%", "device": "b1" },
        { "metric": "power", "value": null },
        { "metric": "power", "value": 2 },
    ]);
    let mapped = mapping::yielded(&list, NOW).expect("readings");
    let found: Vec<_> = mapped.points.iter().map(|p| (p.ts, p.value, p.unit, p.device.as_deref())).collect();
    assert_eq!(
        found,
        [
            (1_700_000_000_500_000, 1.0, "kW", None),
            (1_767_222_000_000_000, 50.5, "%", Some("b1")),
            (NOW, 2.0, "", None)
        ]
    );
    for (wrong, words) in [
        (serde_json::json!([{ "value": 1 }]), "metric"),
        (serde_json::json!([{ "metric": "power", "value": "1" }]), "value 1"),
        (serde_json::json!([{ "metric": "power", "value": 1, "time": "soon" }]), "RFC 3339"),
        (serde_json::json!([{ "metric": "", "value": 1 }]), "no name"),
        (serde_json::json!([7]), "value 1"),
    ] {
        let failure = mapping::yielded(&wrong, NOW).expect_err("no reading");
        assert!(failure.class == Class::BadPayload && failure.message.contains(words), "{failure}");
    }
}

#[test]
fn an_answer_of_too_many_rows_is_not_cut_short() {
    let rows = vec![serde_json::json!({ "p": 1 }); ROWS_MAX + 1];
    for (request, class) in [
        (serde_json::json!({ "name": "x", "path": "/" }), Class::BadPayload),
        (
            serde_json::json!({ "name": "x", "path": "/", "window": { "cadence": "1min", "span": "1d" } }),
            Class::WindowTooLarge,
        ),
    ] {
        let mut device = device("homewizard");
        let mut request = request;
        request["map"] =
            serde_json::json!([{ "rows": "$[*]", "values": [{ "metric": "power", "path": "$.p" }] }]);
        device.requests = requests(&serde_json::json!([request])).expect("valid");
        let window = Window { from: 0, to: NOW };
        let stream = device.streams()[0];
        let decode = |count: usize| device.map(&stream, window, &Value::Array(rows[..count].to_vec()));
        assert_eq!(decode(ROWS_MAX).expect("readings").points.len(), ROWS_MAX);
        assert_eq!(decode(ROWS_MAX + 1).expect_err("too long").class, class);
    }
    let list = Value::Array(vec![serde_json::json!({ "metric": "power", "value": null }); ROWS_MAX + 1]);
    assert!(mapping::yielded(&list, NOW).expect("a list").is_too_long);
}

#[test]
fn callers_are_known_in_the_way_that_the_device_wants() {
    let auth = |value: Value| serde_json::from_value::<Authorisation>(value).expect("valid");
    let answer = |headers: &[(&'static str, &str)], body: &str| Answer {
        name: "POST x".into(),
        status: 200,
        headers: headers
            .iter()
            .map(|(k, v)| (k.parse().expect("a name"), v.parse().expect("a value")))
            .collect(),
        body: body.to_owned().into(),
    };
    let mut gateway = device("powerwall");
    gateway.authorisation = auth(
        serde_json::json!({ "kind": "login", "path": "/api/login/Basic", "password": "hidden",
        "body": { "username": "customer", "password": "{password}" }, "take": { "cookie": "AuthCookie" }, "put": { "cookie": "AuthCookie" } }),
    );
    let call = gateway.refresh("").expect("a call");
    assert_eq!(call.url.path(), "/api/login/Basic");
    let Body::Json(body) = &call.body else { panic!("no body") };
    assert_eq!(body["password"], "hidden");
    let fresh = gateway.fresh(&answer(
        &[("set-cookie", "UserRecord=u; Path=/"), ("set-cookie", "AuthCookie=t0k=; Path=/")],
        "{}",
    ));
    assert_eq!(fresh.expect("a token").access_token, "t0k=");
    let mut call = gateway.probe();
    gateway.authorise(&mut call, Some("t0k="));
    assert!(call.headers.contains(&("Cookie", "AuthCookie=t0k=".to_owned())));
    assert_eq!(
        gateway.failure(None, &Answer { status: 403, ..answer(&[], "") }, NOW).class,
        Class::AuthExpired
    );

    gateway.authorisation = auth(
        serde_json::json!({ "kind": "login", "path": "/dyn/login.json", "password": "hidden",
        "body": { "pass": "{password}" }, "take": { "path": "$.result.sid" }, "put": { "query": "sid" }, "lives": "5min" }),
    );
    let fresh = gateway.fresh(&answer(&[], r#"{"result":{"sid":"s1"}}"#)).expect("a token");
    assert_eq!((fresh.access_token.as_str(), fresh.expires_in), ("s1", Some(300)));
    let mut call = gateway.probe();
    gateway.authorise(&mut call, Some("s1"));
    gateway.authorise(&mut call, Some("s2"));
    assert_eq!(call.url.query(), Some("sid=s2"));

    gateway.authorisation = auth(
        serde_json::json!({ "kind": "oauth2", "tokenUrl": "https://auth.example.com/token", "clientId": "c",
        "clientSecret": "hidden", "scope": "read", "clientAuth": "form" }),
    );
    let call = gateway.refresh("").expect("a call");
    let Body::Form(fields) = &call.body else { panic!("no form") };
    assert_eq!(
        (fields["grant_type"].as_str(), fields["client_secret"].as_str()),
        ("client_credentials", "hidden")
    );
    let Body::Form(fields) = gateway.refresh("r1").expect("a call").body else { panic!("no form") };
    assert_eq!((fields["grant_type"].as_str(), fields["refresh_token"].as_str()), ("refresh_token", "r1"));
    assert_eq!(gateway.authorisation.secrets(), ["hidden"]);

    // The example of RFC 7616, section 3.9.1, with a nonce of our own making in it; SHA-256.
    gateway.authorisation =
        auth(serde_json::json!({ "kind": "digest", "user": "Mufasa", "password": "Circle of Life" }));
    let mut call = gateway.probe();
    let challenge = r#"Digest realm="shelly", qop="auth", algorithm=SHA-256, nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v""#;
    assert!(gateway.respond(&mut call, challenge));
    let (_, header) = call.headers.last().expect("a header");
    assert!(
        header.starts_with("Digest username=\"Mufasa\"") && header.contains("algorithm=SHA-256"),
        "{header}"
    );
    assert!(!gateway.respond(&mut call, "Digest nothing"));
    for wrong in [
        serde_json::json!({ "kind": "oauth2", "tokenUrl": "nowhere", "clientId": "c", "clientSecret": "s" }),
        serde_json::json!({ "kind": "login", "path": "/", "body": {}, "password": "x", "take": {}, "put": "bearer" }),
        serde_json::json!({ "kind": "magic" }),
    ] {
        assert!(serde_json::from_value::<Authorisation>(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn pages_follow_each_other() {
    let mut device = device("homewizard");
    let window = Window { from: 0, to: NOW };
    let mut next = |pages: Value, page: u64, last: Value| {
        device.requests = requests(&serde_json::json!([{ "name": "x", "path": "/list?a=1", "pages": pages,
            "map": [{ "values": [{ "metric": "power", "path": "$.p" }] }] }]))
        .expect("valid");
        let stream = device.streams()[0];
        device.next_page(&stream, window, page, &last).map(|call| call.map(|call| call.url.to_string()))
    };
    let host = "http://192.168.1.20";
    let by_number = serde_json::json!({ "items": "$.items[*]", "param": "page" });
    let call = next(by_number.clone(), 1, serde_json::json!({ "items": [1] })).expect("sound");
    assert_eq!(call, Some(format!("{host}/list?a=1&page=2")));
    assert_eq!(next(by_number, 2, serde_json::json!({ "items": [] })), Ok(None));
    let by_cursor = serde_json::json!({ "cursor": "$.next", "param": "a" });
    let call = next(by_cursor.clone(), 1, serde_json::json!({ "next": 77 })).expect("sound");
    assert_eq!(call, Some(format!("{host}/list?a=77")));
    assert_eq!(next(by_cursor, 1, serde_json::json!({ "next": null })), Ok(None));
    let by_address = serde_json::json!({ "next": "$.links.next" });
    let call = next(by_address.clone(), 1, serde_json::json!({ "links": { "next": "/list?from=9" } }))
        .expect("sound");
    assert_eq!(call, Some(format!("{host}/list?from=9")));
    let elsewhere = serde_json::json!({ "links": { "next": "http://evil.example/list" } });
    assert_eq!(next(by_address, 1, elsewhere).expect_err("another host").class, Class::BadPayload);
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
