//! CSV of NISC's SmartHub: blocks of intervals of which only the numbers tell whether they were taken from the grid, fed in, or are the net.

use std::io::BufRead;

use jiff::civil::DateTime;
use wattlake_catalog::{Category, Quality};

use super::{
    FileOptions, FileRows, RowReader,
    local::{LocalTimes, Placed},
    text::{Lines, number},
};
use crate::{Error, Result};

/// Rows of a block, which is held until its end.
pub(super) const BLOCK_ROWS_MAX: usize = if cfg!(test) { 100 } else { 2_000_000 };

/// Whether a line is the header row of a block.
pub(super) fn is_header(line: &str) -> bool {
    line.trim().starts_with("Energy consumption time period,")
}

struct Row {
    line: u64,
    local: DateTime,
    /// Seconds.
    length: i64,
    value: f64,
}

pub(super) struct Reader<R> {
    lines: Lines<R>,
    entity: String,
    options: FileOptions,
    block: Vec<Row>,
    is_within: bool,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(source: R, options: &FileOptions) -> Result<Self> {
        options.zone_of_local_times()?;
        Ok(Self {
            lines: Lines::new(source),
            entity: options.entity().to_owned(),
            options: options.clone(),
            block: Vec::new(),
            is_within: false,
        })
    }

    /// Takes the readings of a block that has ended.
    fn end_block(&mut self, rows: &mut FileRows) -> Result<()> {
        let block = std::mem::take(&mut self.block);
        let (has_less, has_more) =
            (block.iter().any(|row| row.value < 0.0), block.iter().any(|row| row.value > 0.0));
        let metric = match (has_less, has_more) {
            (true, true) => "net_energy",
            (true, false) => "export_energy",
            _ => "import_energy",
        };
        let Some(first) = block.first() else { return Ok(()) };
        rows.hint(&self.entity, Category::Cons, Some(first.length));
        let series = rows.series(&self.entity, metric, "kWh");
        let mut local = LocalTimes::new(self.options.zone_of_local_times()?, self.options.dst);
        let mut place =
            |placed: Placed, (line, value): (u64, f64)| match placed.instant(Quality::Good, value == 0.0) {
                Ok(Some((at, quality))) => rows.push(series, at, value, quality, line),
                Ok(None) => {}
                Err(words) => rows.refuse(line, words),
            };
        for row in block {
            let value = if metric == "export_energy" { -row.value } else { row.value };
            local.push(row.local, (row.line, value), &mut place);
        }
        local.finish(&mut place);
        Ok(())
    }
}

/// `2025-10-19 08:00 to 2025-10-19 09:00,-0.420,,`
fn row(text: &str, line: u64) -> std::result::Result<Row, String> {
    let mut cells = text.split(',');
    let (period, value) = (cells.next().unwrap_or_default(), cells.next().unwrap_or_default());
    let time = |text: &str| DateTime::strptime("%Y-%m-%d %H:%M", text.trim()).ok();
    let times = period.split_once(" to ").and_then(|(from, to)| Some((time(from)?, time(to)?)));
    let shown: String = period.chars().take(40).collect();
    let (local, end) =
        times.ok_or_else(|| format!("`{shown}` is no period as 2025-10-19 08:00 to 2025-10-19 09:00"))?;
    let length = (end - local).total(jiff::Unit::Second).map_or(0, |seconds| seconds as i64);
    let value = number(value, '.')
        .ok_or_else(|| format!("`{}` is no number", value.chars().take(20).collect::<String>()))?;
    Ok(Row { line, local, length, value })
}

impl<R: BufRead + Send> RowReader for Reader<R> {
    fn read(&mut self, rows: &mut FileRows) -> Result<bool> {
        let Some(line) = self.lines.next()?.map(str::to_owned) else {
            self.end_block(rows)?;
            return Ok(false);
        };
        if is_header(&line) {
            self.end_block(rows)?;
            self.is_within = true;
        } else if self.is_within && !line.is_empty() {
            if line.starts_with("===") || line.contains("Blockdata") {
                self.is_within = false;
                self.end_block(rows)?;
            } else {
                match row(&line, self.lines.number) {
                    Ok(row) if self.block.len() < BLOCK_ROWS_MAX => self.block.push(row),
                    Ok(_) => {
                        return Err(Error::invalid(format!("a block has more than {BLOCK_ROWS_MAX} rows")));
                    }
                    Err(words) => rows.refuse(self.lines.number, words),
                }
            }
        }
        Ok(true)
    }
}
