//! Answers in the documented shape.

use bytes::Bytes;
use reqwest::header::HeaderMap;

use super::*;

fn api(zone: &str) -> Enphase {
    Enphase {
        base: BASE.parse().expect("a url"),
        is_local: false,
        system: "66".into(),
        zone: TimeZone::get(zone).expect("a zone"),
        key: "key-of-an-app".into(),
        client_id: "client".into(),
        client_secret: "secret".into(),
        streams: STREAMS.iter().map(|stream| stream.name.to_owned()).collect(),
    }
}

fn stream(name: &str) -> Stream {
    STREAMS.into_iter().find(|stream| stream.name == name).expect("a stream")
}

const START: i64 = 1_496_526_300;

/// Quantity, seconds since 1970, value, unit, quality of each reading.
fn readings(name: &str, body: &str) -> Vec<(Quantity, i64, f64, &'static str, Quality)> {
    let window = Window { from: (START - 300) * SECOND, to: (START + 86_400) * SECOND };
    let body = serde_json::from_str(body).expect("JSON");
    let found = api("UTC").decode(&stream(name), window, &body).expect("readings");
    found.points.iter().map(|p| (p.quantity, p.ts / SECOND, p.value, p.unit, p.quality)).collect()
}

#[test]
fn calls_name_their_window_and_their_key() {
    let api = api("Australia/Sydney");
    let mut call =
        api.call(&stream("production"), Window { from: START * SECOND, to: (START + WEEK) * SECOND }, false);
    api.authorise(&mut call, Some("token"));
    assert_eq!(
        call.url.as_str(),
        "https://api.enphaseenergy.com/api/v4/systems/66/telemetry/production_meter?start_at=1496526300&granularity=week&key=key-of-an-app"
    );
    assert_eq!(call.headers, [("Authorization", "Bearer token".to_owned())]);
    let day = Window { from: START * SECOND, to: (START + 86_400) * SECOND };
    let call = api.call(&stream("import"), day, false);
    assert!(
        call.url.as_str().ends_with("/energy_import_telemetry?start_at=1496526300&granularity=day"),
        "{}",
        call.url
    );
    // 21:45 UTC is the next day in Sydney; the last day is that of the last moment.
    let call = api.call(&stream("days"), day, false);
    assert!(
        call.url.as_str().ends_with("/energy_lifetime?start_date=2017-06-04&end_date=2017-06-05"),
        "{}",
        call.url
    );
    let refresh = api.refresh("old token").expect("a call");
    assert_eq!(
        refresh.url.as_str(),
        "https://api.enphaseenergy.com/oauth/token?grant_type=refresh_token&refresh_token=old+token"
    );
    assert_eq!(refresh.headers, [("Authorization", "Basic Y2xpZW50OnNlY3JldA==".to_owned())]);
}

#[test]
fn intervals_are_told_by_their_start() {
    let body = r#"{"system_id":1,"granularity":"day","total_devices":9,"start_at":1496526300,"items":"intervals","intervals":[
        {"end_at":1496526600,"devices_reporting":9,"powr":30,"enwh":40},
        {"end_at":1496526900,"devices_reporting":8,"powr":31,"enwh":null}],
        "meta":{"status":"normal","last_report_at":1496528300,"last_energy_at":1496528300}}"#;
    assert_eq!(
        readings("micros", body),
        [
            (Quantity::Power, START, 30.0, "W", Quality::Good),
            (Quantity::Energy, START, 40.0, "Wh", Quality::Good),
            // One device is late: more will come.
            (Quantity::Power, START + 300, 31.0, "W", Quality::Estimated),
        ]
    );
    let body = r#"{"total_devices":1,"intervals":[{"end_at":1496527200,"devices_reporting":1,"wh_del":40}]}"#;
    assert_eq!(readings("production", body), [(Quantity::Energy, START, 40.0, "Wh", Quality::Good)]);
    let body = r#"{"total_devices":1,"intervals":[{"end_at":1496527200,"devices_reporting":1,"enwh":7}]}"#;
    assert_eq!(
        readings("consumption", body),
        [(Quantity::ConsumptionEnergy, START, 7.0, "Wh", Quality::Good)]
    );
    let body = r#"{"total_devices":4,"intervals":[{"end_at":1496527200,"charge":{"enwh":40,"devices_reporting":1},
        "discharge":{"enwh":0,"devices_reporting":4},"soc":{"percent":25,"devices_reporting":4}}]}"#;
    assert_eq!(
        readings("battery", body),
        [
            (Quantity::ChargeEnergy, START, 40.0, "Wh", Quality::Good),
            (Quantity::DischargeEnergy, START, 0.0, "Wh", Quality::Good),
            (Quantity::StateOfCharge, START, 25.0, "%", Quality::Good),
        ]
    );
    let body =
        r#"{"intervals":[[{"end_at":1496527200,"wh_imported":40},{"end_at":1496528100,"wh_imported":41}]]}"#;
    assert_eq!(
        readings("import", body),
        [
            (Quantity::ImportEnergy, START, 40.0, "Wh", Quality::Good),
            (Quantity::ImportEnergy, START + 900, 41.0, "Wh", Quality::Good),
        ]
    );
}

#[test]
fn days_are_local_and_zeros_at_the_end_have_not_come_yet() {
    let body = r#"{"system_id":66,"start_date":"2026-03-28","production":[15422,0,17118,0,0]}"#;
    let body = serde_json::from_str(body).expect("JSON");
    let window = Window { from: 0, to: i64::MAX };
    let found = api("Europe/Berlin").decode(&stream("days"), window, &body).expect("readings");
    let days: Vec<_> = found
        .points
        .iter()
        .map(|p| (Timestamp::from_microsecond(p.ts).expect("a time").to_string(), p.value))
        .collect();
    assert_eq!(
        days,
        [
            ("2026-03-27T23:00:00Z".to_owned(), 15_422.0),
            ("2026-03-28T23:00:00Z".to_owned(), 0.0),
            // The day before had 23 hours.
            ("2026-03-29T22:00:00Z".to_owned(), 17_118.0),
        ]
    );
}

#[test]
fn days_of_a_battery_are_two_arrays() {
    let body =
        serde_json::from_str(r#"{"start_date":"2026-03-01","charge":[1000,0,3000],"discharge":[900,0]}"#)
            .expect("JSON");
    let found = api("UTC")
        .decode(&stream("days_battery"), Window { from: 0, to: i64::MAX }, &body)
        .expect("readings");
    let values: Vec<_> = found.points.iter().map(|p| (p.quantity, p.value)).collect();
    assert_eq!(
        values,
        [
            (Quantity::DayChargeEnergy, 1000.0),
            (Quantity::DayChargeEnergy, 0.0),
            (Quantity::DayChargeEnergy, 3000.0),
            (Quantity::DayDischargeEnergy, 900.0),
        ]
    );
}

#[test]
fn answers_of_another_shape_are_no_readings() {
    let bodies = [
        r"{}",
        r"[]",
        r"null",
        r#"{"intervals":{}}"#,
        r#"{"intervals":[{}]}"#,
        r#"{"intervals":[{"end_at":"soon"}]}"#,
        r#"{"intervals":[{"end_at":1496527200,"wh_del":"40"}]}"#,
        r#"{"intervals":[{"end_at":1496527200,"wh_del":{}}]}"#,
        r#"{"intervals":[7]}"#,
        r#"{"intervals":[],"meta":{"last_energy_at":"x"}}"#,
    ];
    let window = Window { from: 0, to: i64::MAX };
    for body in bodies {
        let value = serde_json::from_str(body).expect("JSON");
        let failure = api("UTC").decode(&stream("production"), window, &value).expect_err(body);
        assert!(failure.class == Class::BadPayload && failure.message.len() <= 512, "{body}: {failure:?}");
    }
    // Times beyond all calendars are nobody's window.
    let far =
        serde_json::from_str(r#"{"intervals":[{"end_at":9223372036854775807,"wh_del":1}]}"#).expect("JSON");
    assert_eq!(api("UTC").decode(&stream("production"), window, &far).expect("nothing").points, []);
}

#[test]
fn errors_have_their_classes() {
    let class = |status: u16, body: &str, of: Option<&str>| {
        let answer = Answer {
            name: "GET x".into(),
            status,
            headers: HeaderMap::new(),
            body: Bytes::from(body.to_owned()),
        };
        let stream = of.map(stream);
        api("UTC").failure(stream.as_ref(), &answer, 1_000 * SECOND).class
    };
    let some = Some("production");
    assert_eq!(class(401, r#"{"message":"Not Authorized","code":401}"#, some), Class::AuthExpired);
    assert_eq!(class(403, "{}", Some("battery")), Class::Forbidden);
    assert_eq!(class(404, "{}", None), Class::Refused);
    let minute = r#"{"message":"Too Many Requests","code":429,"period":"minute","period_start":980,"period_end":1040,"limit":5}"#;
    assert_eq!(class(429, minute, some), Class::Throttled { until: 1_041 * SECOND });
    assert_eq!(class(429, r#"{"message":"Too Many Requests","code":429}"#, some), Class::QuotaExhausted);
    let range = r#"{"details":"Invalid request because of 'Requested date range is invalid for this system. {:start_at=>1566930600, :end_at=>1565333100, :first_interval=>1565072100, :last_interval=>1565333700}'"}"#;
    assert_eq!(class(422, range, some), Class::NoDataYet);
    assert_eq!(class(422, r#"{"details":"Requested date is in the future"}"#, some), Class::NoDataYet);
    assert_eq!(class(422, r#"{"details":"end_at is too far"}"#, some), Class::WindowTooLarge);
    assert_eq!(
        class(500, r#"{"errorCode":7,"errorMessages":["Data is temporarily unavailable"]}"#, some),
        Class::Retry
    );
    assert_eq!(class(405, r#"{"reason":"405","message":["Method not allowed"]}"#, some), Class::Refused);
    assert_eq!(bounds(":first_interval=>12, :last_interval=>34}"), Some((12, 34)));
}
