//! Each format by small examples.

mod limits;

use wattlake_catalog::Quality;

use super::*;

type Found = Vec<(String, String, String, f64, String, Quality, u64)>;

/// Entity, metric, time, value, unit, quality and line of each reading, and the lines that were refused.
fn read(text: &str, options: &FileOptions) -> (Found, Vec<RefusedLine>) {
    let format = FileFormat::detect(text.as_bytes()).expect("a format that is known");
    read_as(text, format, options).expect("a file that can be read")
}

fn read_as(text: &str, format: FileFormat, options: &FileOptions) -> Result<(Found, Vec<RefusedLine>)> {
    let mut reader = FileReader::new(std::io::Cursor::new(text.as_bytes().to_vec()), format, options)?;
    let (mut found, mut refused) = (Vec::new(), Vec::new());
    while let Some(rows) = reader.next()? {
        let time = |ts: i64| jiff::Timestamp::from_microsecond(ts).expect("a time").to_string();
        found.extend(rows.all().into_iter().map(|(entity, metric, ts, value, unit, quality, line)| {
            (entity.to_owned(), metric.to_owned(), time(ts), value, unit.to_owned(), quality, line)
        }));
        refused.extend(rows.take()?.2);
    }
    Ok((found, refused))
}

fn options(zone: &str) -> FileOptions {
    FileOptions {
        zone: Some(parse_zone(zone).expect("a zone")),
        stem: "meter".into(),
        ..FileOptions::default()
    }
}

fn brief(found: &Found) -> Vec<String> {
    found
        .iter()
        .map(|(entity, metric, time, value, unit, quality, line)| {
            format!("{line} {entity} {metric} {time} {value} {unit} {quality}")
        })
        .collect()
}

fn refusals(refused: &[RefusedLine]) -> Vec<String> {
    refused.iter().map(|line| format!("{}: {}", line.line, line.message)).collect()
}

fn day(values: usize) -> String {
    vec!["1.5"; values].join(",")
}

#[test]
fn market_data_is_read_in_market_time() {
    let text = format!(
        "100,NEM12,202405011135,MDA1,Ret1\r\n200,NMI1,E1B1,1,E1,N1,SER,kWh,30,\r\n300,20240201,{},A,,,20240202120025,\r\n\
         300,20240202,{},V,,,,\r\n400,1,2,S14,32,\r\n400,3,47,A,,\r\n200,NMI1,E1B1,2,B1,,SER,Wh,30,\r\n300,20240201,{},N,,,\r\n900\r\n",
        day(48),
        day(48),
        day(48)
    );
    let (found, refused) = read(&text, &FileOptions::default());
    assert_eq!(refused, []);
    assert_eq!(found.len(), 96);
    let shown = brief(&found);
    assert_eq!(shown[0], "3 NMI1/E1 import_energy 2024-01-31T14:00:00Z 1.5 kWh good");
    assert_eq!(shown[47], "3 NMI1/E1 import_energy 2024-02-01T13:30:00Z 1.5 kWh good");
    assert_eq!(shown[48], "4 NMI1/E1 import_energy 2024-02-01T14:00:00Z 1.5 kWh estimated");
    assert!(shown[50].ends_with("good") && shown[95].ends_with("estimated"), "{shown:?}");
    // Western Australia has a market of its own; its standard time holds all year.
    let market = |zone: &str| FileOptions { market_zone: options(zone).zone, ..options("Europe/Berlin") };
    let (found, _) = read(&text, &market("Australia/Perth"));
    assert_eq!(found[0].2, "2024-01-31T16:00:00Z");
    let (found, _) = read(&text, &market("Australia/Sydney"));
    assert_eq!(found[0].2, "2024-01-31T14:00:00Z");
    let (found, _) = read(&text, &market("+09:30"));
    assert_eq!(found[0].2, "2024-01-31T14:30:00Z");
}

#[test]
fn market_data_that_breaks_the_rules_is_refused_by_line() {
    let text = format!(
        "300,20240201,1,A\n200,NMI1,E1,1,E1,,,kWh,15,\n300,20240201,{},A\n300,20240202,{},A\n400,95,97,A\n400,9,3,A\n300,20240230,{},A\n\
         300,20240203,{},x,A\n200,NMI1,E1,1,E1,,,furlong,15\n300,20240204,{},A\n200,NMI1,E1,1,E1,,,kWh,7\n999,1\n",
        day(48),
        day(96),
        day(96),
        day(95),
        day(96)
    );
    let (found, refused) = read_as(&text, FileFormat::Nem, &FileOptions::default()).expect("a file");
    assert_eq!(found.len(), 96);
    let refused = refusals(&refused);
    for (line, words) in [
        (1, "before any sound record 200"),
        (3, "96 values of 15 minutes"),
        (5, "no interval from 1 to 96"),
        (6, "wrong order"),
        (7, "`20240230` is no date"),
        (8, "value 96 is `x`"),
        (9, "`furlong` is not known"),
        (10, "before any sound record 200"),
        (11, "`7` is no length"),
        (12, "`999` is no record"),
    ] {
        let told = refused
            .iter()
            .find(|text| text.starts_with(&format!("{line}: ")))
            .unwrap_or_else(|| panic!("{line}: {refused:?}"));
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(refused.len(), 10, "{refused:?}");
}

#[test]
fn of_two_records_of_a_day_the_newer_update_counts() {
    let record =
        |update: &str, value: &str| format!("300,20240201,{},A,,,{update},\n", vec![value; 48].join(","));
    let text = format!(
        "200,N,E1,1,E1,,,kWh,30,\n{}{}{}",
        record("20240203000000", "1"),
        record("20240202000000", "2"),
        record("", "3")
    );
    let (found, refused) = read(&text, &FileOptions::default());
    let values: Vec<f64> = found.iter().map(|found| found.3).collect();
    assert_eq!((values[0], values[48], values.len()), (1.0, 3.0, 96));
    assert_eq!(refused.len(), 1);
    assert!(refused[0].line == 3 && refused[0].message.contains("20240203000000"), "{refused:?}");
}

#[test]
fn accumulation_data_stays_a_register() {
    let text = "100,NEM13,202401101030,MDA1,Ret1\n250,VABC005890,11,1,11,11,METSER123,E,006342.8,20231005093055,A,,,007654.9,20240107100333,E64,,,1312.1,kWh,20240407, 20240108100333,20240108091133\n\
        250,X,11,1,11,11,M,I,10,20231005093055,A,,,20,20240107100333,A,,,400,kWh,,,\n250,X,11,1,11,11,M,I,20,20231005093055,A,,,10,20240107100333,A,,,400,kWh,,,\n900\n";
    let (found, refused) = read(text, &FileOptions::default());
    assert_eq!(
        brief(&found),
        [
            "2 VABC005890/11 import_energy_total 2023-10-04T23:30:55Z 6342.8 kWh good",
            "2 VABC005890/11 import_energy_total 2024-01-07T00:03:33Z 7654.9 kWh estimated",
            "3 X/11 export_energy_total 2023-10-04T23:30:55Z 400 kWh good",
            "3 X/11 export_energy_total 2024-01-07T00:03:33Z 800 kWh good",
        ]
    );
    assert!(refused.len() == 1 && refused[0].message.contains("does not follow"), "{refused:?}");
}

const FEED: &str = r#"<?xml version="1.0"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:espi="http://naesb.org/espi">
<entry><link rel="self" href="https://u.example/R/1/UsagePoint/A/MeterReading/1/IntervalBlock/7"/><content>
<espi:IntervalBlock><espi:interval><espi:duration>1800</espi:duration><espi:start>1700000000</espi:start></espi:interval>
<espi:IntervalReading><espi:powerOfTenMultiplier>3</espi:powerOfTenMultiplier><espi:value>282</espi:value></espi:IntervalReading>
<espi:IntervalReading><espi:ReadingQuality><espi:quality>14</espi:quality></espi:ReadingQuality><espi:ReadingQuality><espi:quality>8</espi:quality></espi:ReadingQuality>
<espi:timePeriod><espi:duration>900</espi:duration><espi:start>1700000900</espi:start></espi:timePeriod><espi:value>-5</espi:value></espi:IntervalReading>
<espi:IntervalReading><espi:value>x</espi:value></espi:IntervalReading>
</espi:IntervalBlock></content></entry>
<entry><link rel="self" href="/R/1/UsagePoint/A/MeterReading/1"/><link rel="related" href="/types/1"/><content><espi:MeterReading/></content></entry>
<entry><link rel="self" href="/types/1"/><content><espi:ReadingType><espi:accumulationBehaviour>4</espi:accumulationBehaviour>
<espi:flowDirection>FLOW</espi:flowDirection><espi:intervalLength>900</espi:intervalLength><espi:powerOfTenMultiplier>-1</espi:powerOfTenMultiplier><espi:uom>72</espi:uom>
</espi:ReadingType></content></entry></feed>"#;

#[test]
fn a_feed_is_read_whatever_the_order_of_its_entries() {
    let (found, refused) = read(&FEED.replace("FLOW", "19"), &FileOptions::default());
    assert_eq!(
        brief(&found),
        [
            "5 1/A export_energy 2023-11-14T22:13:20Z 28.2 Wh good",
            "7 1/A export_energy 2023-11-14T22:28:20Z 0.5 Wh estimated",
        ]
    );
    // Its value is no number, and then there is none.
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused.iter().all(|refused| refused.line == 8), "{refused:?}");
    let (found, _) = read(&FEED.replace("FLOW", "4"), &FileOptions::default());
    assert_eq!((found[1].1.as_str(), found[1].3), ("net_energy", -0.5));
    // Cut off, or with tricks of XML.
    let fails = |text: &str| {
        read_as(text, FileFormat::GreenButton, &FileOptions::default()).expect_err("no feed").message
    };
    assert!(fails(FEED.split("</espi:IntervalBlock>").next().expect("a part")).contains("cut off"));
    assert!(fails("<!DOCTYPE x [<!ENTITY a \"b\">]><feed>&a;</feed>").contains("document type"));
    assert!(fails(&"<a>".repeat(100)).contains("nested"));
    let (_, refused) =
        read_as("<feed></feed>", FileFormat::GreenButton, &FileOptions::default()).expect("a feed");
    assert!(refusals(&refused)[0].contains("no interval blocks"));
    let (found, refused) = read(&FEED.replace(">72<", ">77<"), &FileOptions::default());
    assert!(
        found.is_empty() && refused.iter().any(|refused| refused.message.contains("the unit 77")),
        "{refused:?}"
    );
}

#[test]
fn answers_of_a_switched_off_interface_are_read() {
    let text = r#"{"energy":{"timeUnit":"HOUR","unit":"kWh","values":[{"date":"2024-10-27 01:00:00","value":1},{"date":"2024-10-27 02:00:00","value":2},
        {"date":"2024-10-27 03:00:00","value":null},{"date":"2024-10-27 04:00:00"},{"date":"2024-07-01 00:00:00 CEST+0200","value":5},{"date":"soon","value":1}]}}
        {"energyDetails":{"timeUnit":"DAY","unit":"Wh","meters":[{"type":"FeedIn","values":[{"date":"2024-10-27 00:00:00","value":7}]},{"type":"Other","values":[]}]}}
        {"storageData":{"batteryCount":1,"batteries":[{"serialNumber":"B1","telemetries":[{"timeStamp":"2024-10-28 08:00:00","power":12,"stateOfCharge":55}]}]}}
        {"overview":{}}"#;
    let (found, refused) = read(text, &options("Europe/Berlin"));
    let mut shown = brief(&found);
    shown.sort();
    assert_eq!(
        shown,
        [
            "1 meter energy 2024-10-26T23:00:00Z 1 kWh good",
            // One pass of the hour that comes twice: the second, as this vendor gives it.
            "2 meter energy 2024-10-27T01:00:00Z 2 kWh estimated",
            "5 meter energy 2024-06-30T22:00:00Z 5 kWh good",
            "7 meter day_export_energy 2024-10-26T22:00:00Z 7 Wh good",
            "11 B1 soc 2024-10-28T07:00:00Z 55 % good",
            "8 B1 battery_power 2024-10-28T07:00:00Z -12 W good",
        ]
        .into_iter()
        .map(str::to_owned)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
    let refused = refusals(&refused);
    assert_eq!(refused.len(), 3, "{refused:?}");
    assert!(
        refused[0].contains("2024-01-31")
            && refused[1].contains("`Other`")
            && refused[2].contains("overview"),
        "{refused:?}"
    );
    let missing =
        read_as(text, FileFormat::SolarEdge, &FileOptions { stem: "x".into(), ..FileOptions::default() });
    assert!(missing.expect_err("no zone").message.contains("--time-zone"));
}

#[test]
fn tables_of_vendors_are_known_by_their_header() {
    let (found, refused) = read(
        "\u{feff}Date/Time,Energy Produced (Wh),Exported to Grid (Wh)\n10/29/2023 01:00,1,\n10/29/2023 02:00,2,3\n10/29/2023 02:00,4,x\n10/29/2023 03:00,5,-\n31/12/2023 00:00,1,1\nTotal,12,3\n",
        &options("Europe/Amsterdam"),
    );
    assert_eq!(
        brief(&found),
        [
            "2 meter energy 2023-10-28T23:00:00Z 1 Wh good",
            "3 meter energy 2023-10-29T00:00:00Z 2 Wh good",
            "3 meter export_energy 2023-10-29T00:00:00Z 3 Wh good",
            "4 meter energy 2023-10-29T01:00:00Z 4 Wh good",
            "5 meter energy 2023-10-29T02:00:00Z 5 Wh good",
        ]
    );
    let refused = refusals(&refused);
    assert!(
        refused.len() == 2 && refused[0].contains("`x` is no number") && refused[1].contains("31/12/2023"),
        "{refused:?}"
    );

    let fluvius = "\u{feff}Van datum;Van tijdstip;Tot datum;Tot tijdstip;EAN;Meter;Metertype;Register;Volume;Eenheid;Validatiestatus\n\
        12-10-2021;07:30:00;12-10-2021;07:45:00;=\"5414\";1SAG;Digitale Meter;Afname Dag;0,067;kWh;Gevalideerd\n\
        12-10-2021;07:30:00;12-10-2021;07:45:00;=\"5414\";1SAG;Digitale Meter;Injectie Dag;1,5;kWh;Geschat\n\
        12-10-2021;07:45:00;12-10-2021;08:00:00;=\"5414\";1SAG;Digitale Meter;Afname Dag;;kWh;Geen verbruik\n\
        12-10-2021;08:00:00;12-10-2021;08:15:00;=\"5414\";1SAG;Digitale Meter;Afname Piek;1;kWh;Gevalideerd\n";
    let (found, refused) = read(fluvius, &FileOptions::default());
    assert_eq!(
        brief(&found),
        [
            "2 5414 import_energy 2021-10-12T05:30:00Z 0.067 kWh good",
            "3 5414 export_energy 2021-10-12T05:30:00Z 1.5 kWh estimated",
        ]
    );
    assert!(refusals(&refused) == ["5: `Afname Piek` in the column Register is not known"], "{refused:?}");

    let (found, _) = read(
        "Date/time UTC,Active energy Wh (B),Returned energy Wh (B)\n2025-01-11 00:10,33.70,0.00\n",
        &FileOptions { stem: "em3".into(), ..FileOptions::default() },
    );
    assert_eq!(brief(&found)[0], "2 em3 import_energy 2025-01-11T00:10:00Z 33.7 Wh good");
    let (found, _) = read(
        "Name,X,,\nAddress,Y,,\n,,,\nStart Interval Date/Time,Meter Id,Usage,Units,Interval,Usage,Units,Interval\n03/30/2024 00:15,726,-,-,-,0.51,kwh,15min\n",
        &FileOptions::default(),
    );
    assert_eq!(brief(&found), ["5 726 import_energy 2024-03-30T05:15:00Z 0.51 kWh good"]);
    let (found, _) = read(
        "time,Import T1 kWh,Import T2 kWh,Export T1 kWh,Export T2 kWh\n2022-09-01 00:00,8350.25,4650.5,,7450.128\n",
        &options("Europe/Amsterdam"),
    );
    assert_eq!(brief(&found), ["2 meter import_energy_total 2022-08-31T22:00:00Z 13000.75 kWh good"]);
    let (found, _) = read(
        "\"time\",\"kWh.first_value\"\n\"2026-02-13T10:00:00.000+01:00\",\"28477.6\"\n",
        &FileOptions { stem: "m".into(), ..FileOptions::default() },
    );
    assert_eq!(brief(&found), ["2 m energy_total 2026-02-13T09:00:00Z 28477.6 kWh good"]);
}

/// Which pass of the hour that comes twice a row belongs to is told by its own meter, whatever cells of it are empty.
#[test]
fn meters_of_one_table_have_clocks_of_their_own() {
    let profile: Profile = serde_json::from_value(serde_json::json!({
        "header": ["when"], "entity": "{meter}", "time": { "columns": ["when"], "format": "%Y-%m-%d %H:%M" },
        "values": [{ "columns": ["in"], "metric": "import_energy" }, { "columns": ["out"], "metric": "export_energy" }],
    }))
    .expect("a profile");
    profile.check().expect("a sound profile");
    let options = FileOptions { profile: Some(Arc::new(profile)), ..options("Europe/Berlin") };
    let rows = ["02:00,a,1,2", "02:00,b,,3", "02:00,a,,4", "02:00,b,5,", "03:00,a,1,1", "03:00,b,1,1"];
    let text = format!("when,meter,in,out\n{}\n", rows.map(|row| format!("2025-10-26 {row}")).join("\n"));
    let (found, refused) = read_as(&text, FileFormat::Mapped, &options).expect("a table");
    assert_eq!(refused, []);
    let mut shown: Vec<_> = brief(&found).into_iter().filter(|row| !row.contains("T02:00")).collect();
    shown.sort();
    assert_eq!(
        shown,
        [
            "2 a export_energy 2025-10-26T00:00:00Z 2  good",
            "2 a import_energy 2025-10-26T00:00:00Z 1  good",
            "3 b export_energy 2025-10-26T00:00:00Z 3  good",
            "4 a export_energy 2025-10-26T01:00:00Z 4  good",
            "5 b import_energy 2025-10-26T01:00:00Z 5  good",
        ]
    );
}

#[test]
fn tables_with_layouts_of_their_own_are_read() {
    let sma = "\u{feff}sep=,\nVersion CSV3|Tool WebUI|Linebreaks CR/LF|Delimiter comma\n\n,STP,STP,STP\n,SUNNY,SUNNY,SUNNY\n,S1,S1,S1\n,Metering.TotWhOut,GridMs.TotW (Avg),Operation.Health\n\
        ,Analog,Analog,Status\nDD.MM.YYYY hh:mm:ss,[Wh],[W],\n30.06.2025 00:05:00,41823730,NaN,307\n30.06.2025 00:10:00,x,12.5,307\n2025-06-30,1,1,1\n";
    let (found, refused) = read(sma, &options("Europe/Berlin"));
    assert_eq!(
        brief(&found),
        [
            "10 S1 energy_total 2025-06-29T22:05:00Z 41823730 Wh good",
            "11 S1 power 2025-06-29T22:10:00Z 12.5 W good"
        ]
    );
    assert_eq!(refused.len(), 2, "{refused:?}");
    let block = |value: &str| {
        format!(
            "====\n Interval Blockdata for period starting:, x\n====\n Energy consumption time period,Usage(Real energy in kilowatt-hours),Events occurred\n 2025-10-19 08:00 to 2025-10-19 09:00,{value},,\n 2025-10-19 09:00 to 2025-10-19 10:00,0.0,,\n"
        )
    };
    let text = format!(
        "{}{} 2025-10-19 10:00 to 2025-10-19 11:00,1.0,,\n{}",
        block("-0.420"),
        block("-0.5"),
        block("2.5")
    );
    let (found, refused) = read(&text, &options("America/Denver"));
    assert_eq!(refused, []);
    let shown = brief(&found);
    assert_eq!(shown[0], "5 meter export_energy 2025-10-19T14:00:00Z 0.42 kWh good");
    assert_eq!(shown[2], "11 meter net_energy 2025-10-19T14:00:00Z -0.5 kWh good");
    assert_eq!(shown[5], "18 meter import_energy 2025-10-19T14:00:00Z 2.5 kWh good");
}

#[test]
fn exports_of_influx_become_line_protocol() {
    let text = "#group,false,false,true,true,false,false,true,true,true\n#datatype,string,long,dateTime:RFC3339,dateTime:RFC3339,dateTime:RFC3339,double,string,string,string\n#default,_result,,,,,,,,\n\
        ,result,table,_start,_stop,_time,_value,_field,_measurement,entity id\n,,0,2026-01-01T00:00:00Z,2026-02-01T00:00:00Z,2026-01-02T00:00:00.5Z,1.5,value,power,roof 1\n\
        ,,0,2026-01-01T00:00:00Z,2026-02-01T00:00:00Z,2026-01-02T00:00:00Z,,value,power,roof\n\n#datatype,string,long,dateTime:RFC3339,long,string,string\n,result,table,_time,_value,_field,_measurement\n,,1,2026-01-02T00:00:00Z,7,n,x\n";
    assert_eq!(FileFormat::detect(text.as_bytes()), Some(FileFormat::AnnotatedCsv));
    let mut lines = String::new();
    AnnotatedCsv::new(text.as_bytes()).read_to_string(&mut lines).expect("lines");
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[4], r"power,entity\ id=roof\ 1 value=1.5 1767312000500000000");
    assert_eq!((lines[5], lines[9]), ("# no value", "x n=7i 1767312000000000000"));
    assert_eq!(lines.len(), text.lines().count());
    let dump = "# DDL\nCREATE DATABASE x WITH NAME autogen\n# DML\n# CONTEXT-DATABASE:x\nm,a=b v=1 1\n";
    assert_eq!(FileFormat::detect(dump.as_bytes()).map(FileFormat::name), Some("line-protocol"));
    let mut lines = String::new();
    Dump::new(dump.as_bytes()).read_to_string(&mut lines).expect("lines");
    assert_eq!(lines, dump.replace("CREATE", "#REATE"));
}

#[test]
fn files_are_told_apart_by_what_is_in_them() {
    let utf16: Vec<u8> = [0xff, 0xfe]
        .into_iter()
        .chain("Date/time UTC,Active energy Wh (A)\n".encode_utf16().flat_map(u16::to_le_bytes))
        .collect();
    for (head, name) in [
        (&b"PAR1\0\0"[..], Some("parquet")),
        (b"{\"entityId\":\"a\"}\n", Some("ndjson")),
        (b"timestamp,entity_id,metric,value\n", Some("csv")),
        (b"power,entity_id=a value=1 1700000000000000000\n", Some("line-protocol")),
        (b"\n\n200,VABD000163,E1Q1,1,E1,N1,METSER123,kWh,30,\n", Some("nem12")),
        (&utf16, Some("shelly")),
        (b"<html></html>", None),
        (b"a,b,c\n1,2,3\n", None),
        (b"", None),
        (b"\xff\xfe\x00", None),
        (b"hello world\n", None),
    ] {
        assert_eq!(FileFormat::detect(head).map(FileFormat::name), name, "{}", String::from_utf8_lossy(head));
    }
    for name in FileFormat::names() {
        assert_eq!(name.parse::<FileFormat>().map(FileFormat::name).ok(), Some(name));
    }
    assert!("xls".parse::<FileFormat>().is_err_and(|error| error.message.contains("green-button")));
}

/// A small file of each format.
fn examples() -> Vec<(FileFormat, String)> {
    let named = |name: &str| name.parse::<FileFormat>().expect("a format");
    let nem = format!(
        "100,NEM12,202405011135,A,B\n200,N,E1,1,E1,,,kWh,30,\n300,20240201,{},V,,,20240202120025,\n400,1,48,A,,\n250,V,1,1,1,1,M,E,1,20231005093055,A,,,2,20240107100333,A,,,1,kWh,,\n900\n",
        day(48)
    );
    vec![
        (FileFormat::Nem, nem),
        (FileFormat::GreenButton, FEED.replace("FLOW", "1")),
        (FileFormat::SolarEdge, r#"{"energyDetails":{"timeUnit":"HOUR","unit":"Wh","meters":[{"type":"FeedIn","values":[{"date":"2024-10-27 02:00:00","value":7},{"date":"2024-10-27 02:00:00 CET+0100"}]}]}}"#.into()),
        (FileFormat::Sma, "sep=;\nVersion CSV3|Delimiter semicolon\n;a;b\n;c;d\n;S;S\n;Metering.TotWhOut;GridMs.TotW\n;Analog;Status\nDD.MM.YYYY hh:mm:ss;[Wh];[W]\n27.10.2024 02:00:00;1,5;x\n27.10.2024 02:00:00;2;x\n".into()),
        (FileFormat::Nisc, "Energy consumption time period,Usage(Real energy in kilowatt-hours),Events\n2025-03-30 02:00 to 2025-03-30 03:00,-0.4,,\n2025-03-30 03:00 to 2025-03-30 04:00,1,,\n===\n".into()),
        (named("enphase"), "Date/Time,Energy Produced (Wh)\n10/29/2023 02:00,1\n10/29/2023 02:00,2\n03/26/2023 02:00,\"3\"\n".into()),
        (named("fluvius"), "Van datum;Van tijdstip;EAN;Register;Volume;Eenheid;Validatiestatus\n30-10-2022;02:30:00;=\"5\";Afname Dag;0,067;kWh;Gevalideerd\n".into()),
        (FileFormat::AnnotatedCsv, "#datatype,string,long,dateTime:RFC3339,double,string,string,string\n,result,table,_time,_value,_field,_measurement,t\n,,0,2026-01-02T00:00:00Z,1.5,v,m,\"a,b\"\n".into()),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: crate::tests::cases() * 20, ..Default::default() })]

    /// Whatever is done to a file: it is read to its end or an error says why not, and no reading is of no time or no number.
    #[test]
    fn damaged_files_are_read_or_refused(
        which in 0..8usize, cut in 0.0..1.0f64, changes in proptest::collection::vec((0.0..1.0f64, 0..6u8, proptest::prelude::any::<u8>()), 0..12), is_cut: bool,
    ) {
        let (format, text) = examples().swap_remove(which);
        let mut bytes = text.into_bytes();
        for (place, what, byte) in changes {
            let at = ((bytes.len() as f64) * place) as usize;
            match what {
                0 => bytes.insert(at.min(bytes.len()), byte),
                1 if !bytes.is_empty() => drop(bytes.remove(at.min(bytes.len() - 1))),
                2 if !bytes.is_empty() => { let at = at.min(bytes.len() - 1); bytes[at] = byte }
                3 => { let again = bytes[at.min(bytes.len())..].to_vec(); bytes.extend(again) }
                4 => bytes.splice(at.min(bytes.len())..at.min(bytes.len()), *b"99999999999999999999").for_each(drop),
                _ => bytes.splice(at.min(bytes.len())..at.min(bytes.len()), *b",\n\"").for_each(drop),
            }
        }
        if is_cut {
            bytes.truncate(((bytes.len() as f64) * cut) as usize);
        }
        let _ = FileFormat::detect(&bytes);
        let options = options("Europe/Berlin");
        if format == FileFormat::AnnotatedCsv {
            let _ = AnnotatedCsv::new(bytes.as_slice()).read_to_end(&mut Vec::new());
            return Ok(());
        }
        let Ok(mut reader) = FileReader::new(std::io::Cursor::new(bytes), format, &options) else { return Ok(()) };
        while let Ok(Some(rows)) = reader.next() {
            proptest::prop_assert!(rows.all().iter().all(|row| row.3.is_finite()));
            rows.take().expect("a table");
        }
    }
}
