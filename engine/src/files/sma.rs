//! CSV3 of the web interface of SMA's inverters.
//!
//! Five rows before the table tell of each column the device, its product, its serial number, the channel and the kind; the row after
//! them has the pattern of the time and the units.

use std::io::BufRead;

use jiff::civil::DateTime;
use wattlake_catalog::{Category, Quality};

use super::{
    FileOptions, FileRows, RowReader,
    local::{LocalTimes, Placed},
    rows::FileSeries,
    text::{Lines, number},
};
use crate::{Error, Result};

const PREAMBLE_LINES_MAX: u64 = 100;
/// Cells that are no readings.
const NULL_VALUES: [&str; 5] = ["", "NaN", "NaNStt", "NoneMsg", "-"];

/// A column with readings.
struct Column {
    at: usize,
    entity: String,
    metric: String,
    unit: String,
}

struct Layout {
    delimiter: char,
    format: String,
    columns: Vec<Column>,
    decimal: char,
}

pub(super) struct Reader<R> {
    lines: Lines<R>,
    default_entity: String,
    layout: Option<Layout>,
    local: LocalTimes<(u64, Vec<(FileSeries, f64)>)>,
}

/// What a channel measures; others keep their names.
fn metric(channel: &str) -> Option<(&'static str, Category)> {
    Some(match channel.trim_end_matches(" (Avg)") {
        "Metering.TotWhOut" => ("energy_total", Category::Prod),
        "Metering.GridMs.TotWhOut" => ("export_energy_total", Category::Prod),
        "Metering.GridMs.TotWhIn" => ("import_energy_total", Category::Prod),
        "GridMs.TotW" => ("power", Category::Prod),
        "GridMs.Hz" => ("frequency", Category::Prod),
        "Bat.ChaStt" => ("soc", Category::Stor),
        _ => return None,
    })
}

/// A pattern such as `DD.MM.YYYY hh:mm:ss` for strftime.
fn pattern(text: &str) -> Option<String> {
    let known =
        [("YYYY", "%Y"), ("DD", "%d"), ("MM", "%m"), ("hh", "%H"), ("HH", "%H"), ("mm", "%M"), ("ss", "%S")];
    let pattern = known.iter().fold(text.trim().to_owned(), |text, (from, to)| text.replace(from, to));
    (pattern.contains("%Y") && pattern.contains("%H")).then_some(pattern)
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(source: R, options: &FileOptions) -> Result<Self> {
        Ok(Self {
            lines: Lines::new(source),
            default_entity: options.entity().to_owned(),
            layout: None,
            local: LocalTimes::new(options.zone_of_local_times()?, options.dst),
        })
    }

    fn find_layout(&mut self, rows: &mut FileRows) -> Result<Layout> {
        let mut delimiter = ',';
        let mut above: Vec<Vec<String>> = Vec::new();
        while let Some(line) = self.lines.next()? {
            if let Some((_, word)) = line.split_once("Delimiter ") {
                delimiter = match word.split('|').next().unwrap_or_default().trim() {
                    "semicolon" => ';',
                    "tabulator" => '\t',
                    _ => ',',
                };
            }
            let cells: Vec<String> = line.split(delimiter).map(|cell| cell.trim().to_owned()).collect();
            if let Some(format) = cells.first().and_then(|cell| pattern(cell)) {
                return Ok(self.layout(delimiter, format, &cells, &above, rows));
            }
            if cells.len() > 1 && cells[0].is_empty() {
                above.push(cells);
            }
            if self.lines.number >= PREAMBLE_LINES_MAX {
                break;
            }
        }
        Err(Error::invalid("there is no row with a pattern of times, as DD.MM.YYYY hh:mm:ss"))
    }

    fn layout(
        &self,
        delimiter: char,
        format: String,
        units: &[String],
        above: &[Vec<String>],
        rows: &mut FileRows,
    ) -> Layout {
        // From the bottom: the kind, the channel, the serial number.
        let cell = |from_bottom: usize, at: usize| {
            let row = above.len().checked_sub(from_bottom).and_then(|row| above.get(row));
            row.and_then(|row| row.get(at)).map_or("", String::as_str)
        };
        let mut columns = Vec::new();
        for (at, unit) in units.iter().enumerate().skip(1) {
            if cell(1, at) == "Status" {
                continue;
            }
            let (channel, serial) = (cell(2, at), cell(3, at));
            let entity = if serial.is_empty() { self.default_entity.clone() } else { serial.to_owned() };
            let unit = unit.trim_matches(['[', ']']).to_owned();
            let (name, category) = metric(channel).unwrap_or((channel, Category::Prod));
            if name.is_empty() {
                continue;
            }
            rows.hint(&entity, category, None);
            columns.push(Column { at, entity, metric: name.to_owned(), unit });
        }
        Layout { delimiter, format, columns, decimal: if delimiter == ';' { ',' } else { '.' } }
    }
}

/// Takes the readings of a row whose instant is known.
fn place(placed: Placed, (line, readings): (u64, Vec<(FileSeries, f64)>), rows: &mut FileRows) {
    match placed.instant(Quality::Good, readings.iter().all(|(_, value)| *value == 0.0)) {
        Ok(Some((at, quality))) => {
            for (series, value) in readings {
                rows.push(series, at, value, quality, line);
            }
        }
        Ok(None) => {}
        Err(words) => rows.refuse(line, words),
    }
}

impl<R: BufRead + Send> RowReader for Reader<R> {
    fn read(&mut self, rows: &mut FileRows) -> Result<bool> {
        let layout = match self.layout.take() {
            Some(layout) => layout,
            None => self.find_layout(rows)?,
        };
        let Some(line) = self.lines.next()?.map(str::to_owned) else {
            self.local.finish(&mut |placed, row| place(placed, row, rows));
            return Ok(false);
        };
        let number_of_line = self.lines.number;
        if !line.is_empty() {
            let cells: Vec<&str> = line.split(layout.delimiter).map(str::trim).collect();
            match DateTime::strptime(&layout.format, cells[0]) {
                Err(_) => {
                    let text: String = cells[0].chars().take(40).collect();
                    rows.refuse(
                        number_of_line,
                        format!("the time `{text}` is not of the form {}", layout.format),
                    );
                }
                Ok(local) => {
                    let mut readings = Vec::new();
                    for column in &layout.columns {
                        let text = cells.get(column.at).copied().unwrap_or_default();
                        if NULL_VALUES.contains(&text) {
                            continue;
                        }
                        match number(text, layout.decimal) {
                            Some(value) => readings
                                .push((rows.series(&column.entity, &column.metric, &column.unit), value)),
                            None => rows
                                .refuse(number_of_line, format!("{}: `{text}` is no number", column.metric)),
                        }
                    }
                    self.local
                        .push(local, (number_of_line, readings), &mut |placed, row| place(placed, row, rows));
                }
            }
        }
        self.layout = Some(layout);
        Ok(true)
    }
}
