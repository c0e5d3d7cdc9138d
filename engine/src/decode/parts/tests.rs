use std::{io::Cursor, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch, TimestampMicrosecondArray},
    datatypes::TimestampMicrosecondType,
    ipc::reader::StreamReader,
};
use csv::{ByteRecord, ReaderBuilder};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;

use super::*;
use crate::decode::time::LocalClock;

const HOUR: i64 = 3_600_000_000;

fn berlin() -> TableMapping {
    TableMapping { time_zone: Some("Europe/Berlin".into()), ..TableMapping::default() }
}

fn cut(text: &[u8], format: BodyFormat, mapping: &TableMapping, bytes_max: usize) -> Result<Vec<Part>> {
    Parts::of_text(Cursor::new(text.to_vec()), format, Some(mapping), bytes_max)?.collect()
}

fn records(text: &[u8]) -> Vec<ByteRecord> {
    let mut reader = ReaderBuilder::new().flexible(true).has_headers(false).from_reader(text);
    reader.byte_records().map(|record| record.unwrap()).collect()
}

proptest! {
    /// However a table is cut, its parts hold the records of the whole, each under the header, counted from the start.
    #[test]
    fn parts_of_csv_are_the_whole(
        rows in prop::collection::vec(prop::collection::vec("[a\",\r\n]{0,6}", 2), 1..40),
        bytes_max in 80_usize..300,
        crlf in any::<bool>(),
    ) {
        let terminator = if crlf { csv::Terminator::CRLF } else { csv::Terminator::Any(b'\n') };
        let mut writer = csv::WriterBuilder::new().terminator(terminator).from_writer(Vec::new());
        writer.write_record(["\"timestamp\"", "two\nlines"]).unwrap();
        for row in &rows {
            writer.write_record(row).unwrap();
        }
        let text = writer.into_inner().unwrap();
        let whole = records(&text);
        let mut joined = vec![whole[0].clone()];
        for part in cut(&text, BodyFormat::Csv, &TableMapping::default(), bytes_max).unwrap() {
            let records = records(&part.bytes().unwrap());
            prop_assert_eq!(&records[0], &whole[0]);
            prop_assert_eq!(part.first_row, joined.len() as u64 - 1);
            joined.extend_from_slice(&records[1..]);
        }
        prop_assert_eq!(joined, whole);
    }

    /// Line protocol is cut between lines, never within a string.
    #[test]
    fn parts_of_lines_are_the_whole(
        strings in prop::collection::vec("[a\n,= ]{0,20}", 1..50),
        bytes_max in 60_usize..150,
    ) {
        let line = |text: &String| format!("m,t=x a=1,s=\"{text}\" 1\n");
        let text: String = strings.iter().map(line).collect();
        let parts = cut(text.as_bytes(), BodyFormat::LineProtocol, &TableMapping::default(), bytes_max).unwrap();
        let mut joined = String::new();
        for part in parts {
            prop_assert_eq!(part.first_row, joined.matches('\n').count() as u64);
            let body = String::from_utf8(part.bytes().unwrap().to_vec()).unwrap();
            prop_assert!(body.is_empty() || body.starts_with("m,t=x"), "{:?}", body);
            joined += &body;
        }
        prop_assert_eq!(joined, text);
    }
}

/// Quarter hours around the end of summer time of 2025 in Berlin, as a logger of local time writes them.
fn autumn() -> String {
    let mut text = String::from("entity_id,timestamp,metric,value\n");
    let pass = ["02:00", "02:15", "02:30", "02:45"];
    for time in ["01:30", "01:45"].iter().chain(&pass).chain(&pass).chain(&["03:00", "03:15"]) {
        text += &format!("e,2025-10-26 {time},energy,1\n");
    }
    text
}

#[test]
fn no_part_starts_within_the_hour_that_comes_twice() {
    let text = autumn();
    let clock = LocalClock::of(Some(&berlin())).unwrap().unwrap();
    for bytes_max in 330..text.len() {
        let parts = cut(text.as_bytes(), BodyFormat::Csv, &berlin(), bytes_max).unwrap();
        assert!(parts.len() > 1, "{bytes_max}");
        for part in parts {
            let first = String::from_utf8(records(&part.bytes().unwrap())[1][1].to_vec()).unwrap();
            assert!(!clock.is_repeated(&first), "a part of at most {bytes_max} bytes starts at {first}");
        }
    }
}

#[test]
fn an_hour_too_large_for_a_part_is_refused() {
    let error = cut(autumn().as_bytes(), BodyFormat::Csv, &berlin(), 150).unwrap_err();
    assert!(error.message.contains("twice in autumn"), "{error}");
}

#[test]
fn a_quote_that_never_closes_is_refused_with_its_place() {
    let text = format!("timestamp,value\n1,2\n\"{}", "x\n".repeat(100));
    let parts: Vec<_> = Parts::of_text(Cursor::new(text), BodyFormat::Csv, None, 64).unwrap().collect();
    assert_eq!(parts.len(), 2, "{parts:?}");
    assert_eq!(parts[0].as_ref().unwrap().bytes().unwrap(), "timestamp,value\n1,2\n");
    let error = parts[1].as_ref().unwrap_err();
    assert!(error.message.contains("after row 1 ") && error.message.contains("quote"), "{error}");
}

#[test]
fn parquet_is_cut_before_the_hour_that_comes_twice() {
    // One row a minute; the 200,000th falls into the second pass of 2025-10-26 02:00 to 03:00.
    let fold = "2025-10-26T02:00".parse::<jiff::civil::DateTime>().unwrap();
    let fold = fold.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_microsecond();
    let minute = |i: i64| fold + (i - 199_900) * 60_000_000;
    let local = |i: i64| if minute(i) >= fold + HOUR { minute(i) - HOUR } else { minute(i) };
    let times = TimestampMicrosecondArray::from_iter_values((0..200_400).map(local));
    let batch = RecordBatch::try_from_iter([("timestamp", Arc::new(times.clone()) as _)]).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = ArrowWriter::try_new(&mut file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let parts: Vec<_> = Parts::of_parquet(file, Some(&berlin())).unwrap().collect::<Result<_>>().unwrap();
    assert_eq!(parts.iter().map(|part| part.first_row).collect::<Vec<_>>(), [0, 199_899]);
    let mut joined = Vec::new();
    for part in parts {
        for batch in StreamReader::try_new(Cursor::new(part.bytes().unwrap()), None).unwrap() {
            let column = batch.unwrap().column(0).clone();
            joined.extend_from_slice(column.as_primitive::<TimestampMicrosecondType>().values());
        }
    }
    assert_eq!(joined, times.values().to_vec());
}
