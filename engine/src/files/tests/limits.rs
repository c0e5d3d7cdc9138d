//! What is beyond a limit is refused in words, or read with less care; what is just within it is read.

use std::{fs, io::Write, path::Path};

use super::*;
use crate::ErrorKind;

fn fails(text: &str, format: FileFormat, options: &FileOptions) -> String {
    read_as(text, format, options).map(drop).expect_err("too much").message
}

#[test]
fn lines_are_bounded() {
    let long = "x".repeat(4 << 20);
    let nisc = "Energy consumption time period,Usage(Real energy in kilowatt-hours),Events\n";
    let words = fails(&format!("{nisc}{long}x\n"), FileFormat::Nisc, &options("UTC"));
    assert!(words.contains("line 2 is longer than 4194304 bytes"), "{words}");
    let mut lines = String::new();
    let table = format!("#datatype,string\n,result,{long}\n");
    let error = AnnotatedCsv::new(table.as_bytes()).read_to_string(&mut lines).expect_err("too long");
    assert!(error.to_string().contains("longer than 4194304 bytes"), "{error}");
}

#[test]
fn what_is_held_of_a_file_is_bounded() {
    let header = "Energy consumption time period,Usage(Real energy in kilowatt-hours),Events\n";
    let row = |n: usize| {
        format!(
            "2025-06-{:02} {:02}:00 to 2025-06-{:02} {:02}:30,1,,\n",
            n / 20 + 1,
            n % 20,
            n / 20 + 1,
            n % 20
        )
    };
    let block = |rows: usize| header.to_owned() + &(0..rows).map(row).collect::<String>();
    let (found, _) = read(&block(nisc::BLOCK_ROWS_MAX), &options("UTC"));
    assert_eq!(found.len(), nisc::BLOCK_ROWS_MAX);
    let words = fails(&block(nisc::BLOCK_ROWS_MAX + 1), FileFormat::Nisc, &options("UTC"));
    assert!(words.contains("a block has more than"), "{words}");

    let answer = |bytes: u64| {
        let start = r#"{"energy":{"timeUnit":"HOUR","unit":"Wh","values":[]}}"#.to_owned();
        let spaces = " ".repeat(bytes as usize - start.len());
        start + &spaces
    };
    assert!(read_as(&answer(solaredge::FILE_BYTES_MAX), FileFormat::SolarEdge, &options("UTC")).is_ok());
    let words = fails(&answer(solaredge::FILE_BYTES_MAX + 1), FileFormat::SolarEdge, &options("UTC"));
    assert!(words.contains("larger than"), "{words}");
}

/// Clocks of a hundred meters at once; of an hour that comes twice the first rows are let go when there are too many.
#[test]
fn local_times_are_held_within_limits() {
    let profile: Profile = serde_json::from_value(serde_json::json!({
        "header": ["when"], "entity": "{meter}", "time": { "columns": ["when"], "format": "%Y-%m-%d %H:%M:%S" },
        "values": [{ "columns": ["in"], "metric": "import_energy" }],
    }))
    .expect("a profile");
    let options = FileOptions { profile: Some(Arc::new(profile)), ..options("Europe/Berlin") };
    let table = |meters: usize| {
        let rows = (0..meters).map(|meter| format!("2025-06-01 00:00:00,m{meter},1\n"));
        "when,meter,in\n".to_owned() + &rows.collect::<String>()
    };
    let (found, _) = read_as(&table(profile::ENTITIES_MAX), FileFormat::Mapped, &options).expect("a table");
    assert_eq!(found.len(), profile::ENTITIES_MAX);
    let words = fails(&table(profile::ENTITIES_MAX + 1), FileFormat::Mapped, &options);
    assert!(words.contains("line 102: local times of more than 100 series"), "{words}");

    // One pass with a row every ten seconds: 360 rows.
    let seconds = (0..3600).step_by(10);
    let rows = |day: &str, hour: u32| {
        let row = |second: u32| format!("{day} {hour:02}:{:02}:{:02},m,1\n", second / 60, second % 60);
        seconds.clone().map(row).collect::<String>()
    };
    let autumn = format!("when,meter,in\n{}{}", rows("2025-10-26", 2), rows("2025-10-26", 3));
    let (found, refused) = read_as(&autumn, FileFormat::Mapped, &options).expect("a table");
    assert_eq!((found.len(), refused.len()), (720, 0));
    assert!(360 > local::HELD_MAX && found.iter().filter(|row| row.5 == Quality::Estimated).count() == 360);
    // At times that the clock skipped, and before the hour after it was seen.
    let spring = format!("when,meter,in\n{}", rows("2025-03-30", 2));
    let (found, refused) = read_as(&spring, FileFormat::Mapped, &options).expect("a table");
    assert_eq!((found.len(), refused.len()), (360, 0));
    assert!(found.iter().all(|row| row.5 == Quality::Estimated && row.2.starts_with("2025-03-30T01:")));
}

/// A feed of many readings is read as it comes when it tells first what they are; else they are held, up to a limit.
#[test]
fn readings_of_a_feed_are_held_only_without_their_type() {
    let feed = FEED.replace("FLOW", "1");
    let (head, rest) = feed.split_once("<entry>").expect("entries");
    let (block, types) = rest.split_once("</entry>").expect("a block");
    let (types, end) = types.rsplit_once("</feed>").expect("the end");
    let readings = green_button::READINGS_MAX / 2 + 1;
    let blocks = format!("<entry>{block}</entry>").repeat(readings);
    let (found, refused) = read(&format!("{head}{types}{blocks}</feed>{end}"), &FileOptions::default());
    assert_eq!((found.len(), refused.len()), (2 * readings, 2 * readings));
    let words = fails(
        &format!("{head}{blocks}{types}</feed>{end}"),
        FileFormat::GreenButton,
        &FileOptions::default(),
    );
    assert!(words.contains("more than 1000 readings before what they measure is told"), "{words}");
    // One entry alone can be too much.
    let inside = block.split_once("<espi:IntervalReading>").expect("readings").1;
    let reading = "<espi:IntervalReading><espi:value>1</espi:value></espi:IntervalReading>".repeat(1001);
    let entry = format!(
        "<entry>{}{reading}<espi:IntervalReading>{inside}</entry>",
        block.split_once("<espi:IntervalReading>").expect("readings").0
    );
    let words =
        fails(&format!("{head}{types}{entry}</feed>{end}"), FileFormat::GreenButton, &FileOptions::default());
    assert!(words.contains("more than 1000 readings"), "{words}");
}

#[test]
fn folders_and_archives_are_bounded() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let kind = |found: Result<Vec<FoundFile>>| found.expect_err("too many").kind;
    let deep = (0..34).fold(dir.path().join("deep"), |path, _| path.join("d"));
    fs::create_dir_all(&deep).expect("folders");
    assert_eq!(kind(find_files(&[dir.path().join("deep")])), ErrorKind::TooLarge);
    let many = dir.path().join("many");
    fs::create_dir(&many).expect("a folder");
    let file = |folder: &Path, n: usize| fs::write(folder.join(format!("{n:03}.csv")), "a").expect("a file");
    (0..50).for_each(|n| file(&many, n));
    assert_eq!(find_files(std::slice::from_ref(&many)).expect("files").len(), 50);
    file(&many, 50);
    assert_eq!(kind(find_files(&[many])), ErrorKind::TooLarge);

    let zip_of = |files: usize, bytes: usize| {
        let path = dir.path().join(format!("{files}-{bytes}.zip"));
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).expect("a file"));
        for n in 0..files {
            zip.start_file(format!("{n}.csv"), zip::write::SimpleFileOptions::default()).expect("an entry");
            zip.write_all(&vec![b'0'; bytes]).expect("written");
        }
        zip.finish().expect("a zip");
        path
    };
    assert_eq!(find_files(&[zip_of(50, 1)]).expect("files").len(), 50);
    assert_eq!(kind(find_files(&[zip_of(51, 1)])), ErrorKind::TooLarge);
    // A small archive that unpacks to very much.
    let error = find_files(&[zip_of(1, 70 << 20)]).expect_err("too much");
    assert!(error.message.contains("unpacks to far more than it is"), "{error}");
    // Two archives together.
    assert_eq!(kind(find_files(&[zip_of(30, 1), zip_of(29, 1)])), ErrorKind::TooLarge);
    let tar_path = dir.path().join("x.tar");
    let mut tar = tar::Builder::new(fs::File::create(&tar_path).expect("a file"));
    for n in 0..51 {
        let mut header = tar::Header::new_ustar();
        header.set_size(1);
        header.set_cksum();
        tar.append_data(&mut header, format!("{n}.csv"), &b"1"[..]).expect("an entry");
    }
    tar.finish().expect("a tar");
    assert_eq!(kind(find_files(&[tar_path])), ErrorKind::TooLarge);
}

/// A row of nothing but zeros at a time that did not exist is left out by every format; another one is refused.
#[test]
fn rows_at_skipped_times_are_left_out_when_they_say_nothing() {
    let sma = |value: &str| {
        format!(
            "sep=;\nVersion CSV3|Delimiter semicolon\n;a;b\n;c;d\n;S;S\n;Metering.TotWhOut;GridMs.TotW\n;Analog;Status\nDD.MM.YYYY hh:mm:ss;[Wh];[W]\n\
            30.03.2025 02:00:00;{value};x\n30.03.2025 03:00:00;2;x\n"
        )
    };
    let nisc = |value: &str| {
        format!(
            "Energy consumption time period,Usage(Real energy in kilowatt-hours),Events\n2025-03-30 02:00 to 2025-03-30 03:00,{value},,\n2025-03-30 03:00 to 2025-03-30 04:00,1,,\n"
        )
    };
    let enphase = |value: &str| {
        format!("Date/Time,Energy Produced (Wh)\n03/30/2025 02:00,{value}\n03/30/2025 03:00,1\n")
    };
    let solaredge = |value: &str| {
        format!(
            r#"{{"energy":{{"timeUnit":"HOUR","unit":"Wh","values":[{{"date":"2025-03-30 02:00:00","value":{value}}},{{"date":"2025-03-30 03:00:00","value":1}}]}}}}"#
        )
    };
    for make in [&sma as &dyn Fn(&str) -> String, &nisc, &enphase, &solaredge] {
        for (value, count) in [("0", 0), ("1.5", 1)] {
            let text = make(value);
            let text = if text.starts_with("sep=;") { text.replace("1.5", "1,5") } else { text };
            let (found, refused) = read(&text, &options("Europe/Berlin"));
            assert_eq!((found.len(), refused.len()), (1, count), "{text}");
            assert!(refused.iter().all(|refused| refused.message.contains("skipped")), "{refused:?}");
        }
    }
}
