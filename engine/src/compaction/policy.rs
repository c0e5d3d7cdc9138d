//! What to compact: a plain function of the files and the time.
//!
//! Flush files of a day become a day's file when the day is over, and everything of a month becomes few large files when
//! the month is. Until then flush files of similar size are merged eight at a time, so that their number grows with
//! the logarithm of the rows. A file of which more than 5 % is deleted is rewritten.

use std::{collections::BTreeMap, sync::Arc};

use wattlake_catalog::DataFile;

use crate::{Result, archive::Level, flush::month_of};

const DAY: i64 = 86_400_000_000;
/// How long after its end a day or month is left alone: late readings of its last minutes are common.
const SETTLE: i64 = 3_600_000_000;
/// Files of similar size that are merged while their day is not over.
const FAN_IN: usize = 8;
/// Files read side by side: each holds buffers of its own.
const INPUTS_MAX: usize = 32;
/// A month's file of at least this many rows or bytes is final: half of where a merge starts a new file.
const FINAL_ROWS: u64 = 16 << 20;
const FINAL_BYTES: u64 = 128 << 20;
/// Deleted rows in a thousand beyond which a file is rewritten.
const DELETED_PER_MILLE_MAX: u64 = 50;
/// Small files beside a large one are left until they have this share of its rows in a hundred, or are this many.
const SMALL_PERCENT: u64 = 10;
const SMALL_FILES: usize = 8;

/// Which files become one (or, when it would grow too large, a few).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    /// UTC month, `2026-01`.
    pub month: String,
    pub level: Level,
    /// Ids of the files, ascending.
    pub inputs: Vec<i64>,
}

/// The jobs that are due; no file is in two of them. With `everything` every month is merged as if it were over.
/// `now` is in microseconds since 1970 UTC.
pub(crate) fn plan(files: &[Arc<DataFile>], now: i64, everything: bool) -> Result<Vec<Job>> {
    let mut months: BTreeMap<(String, i64), Vec<&DataFile>> = BTreeMap::new();
    for file in files {
        months.entry(month_of(file.bounds.min_ts)?).or_default().push(file);
    }
    let mut jobs = Vec::new();
    for ((month, end), files) in months {
        let mut add = |level, mut inputs: Vec<&DataFile>| {
            inputs.sort_by_key(|file| file.id);
            let inputs = inputs.into_iter().map(|file| file.id).collect();
            jobs.push(Job { month: month.clone(), level, inputs });
        };
        if everything || end.saturating_add(SETTLE) <= now {
            if let Some(inputs) = closed_month(&files, everything) {
                add(Level::Month, inputs);
            }
        } else {
            open_month(&files, now, &mut add);
        }
    }
    Ok(jobs)
}

fn is_worn(file: &DataFile) -> bool {
    file.delete.as_ref().is_some_and(|delete| delete.count * 1000 > file.rows * DELETED_PER_MILLE_MAX)
}

fn is_final(file: &DataFile) -> bool {
    let is_large = file.rows >= FINAL_ROWS || file.stored.bytes >= FINAL_BYTES;
    file.level == Level::Month.number() && is_large && !is_worn(file)
}

fn closed_month<'a>(files: &[&'a DataFile], everything: bool) -> Option<Vec<&'a DataFile>> {
    let has_deletes = |file: &DataFile| everything && file.delete.is_some();
    let mut rest: Vec<_> =
        files.iter().copied().filter(|file| !is_final(file) || has_deletes(file)).collect();
    rest.sort_by_key(|file| (file.rows, file.id));
    if let [only] = rest[..] {
        let is_done = only.level == Level::Month.number() && !is_worn(only) && !has_deletes(only);
        return (!is_done).then_some(rest);
    }
    // Merging a few late rows would rewrite the whole month.
    if let Some((largest, small)) = rest.split_last()
        && !everything
        && largest.level == Level::Month.number()
        && !is_worn(largest)
        && small.len() < SMALL_FILES
        && small.iter().map(|file| file.rows).sum::<u64>() * 100 < largest.rows * SMALL_PERCENT
    {
        return None;
    }
    rest.truncate(INPUTS_MAX);
    (!rest.is_empty()).then_some(rest)
}

fn open_month<'a>(files: &[&'a DataFile], now: i64, add: &mut impl FnMut(Level, Vec<&'a DataFile>)) {
    let mut days: BTreeMap<i64, Vec<&DataFile>> = BTreeMap::new();
    let mut tiers: BTreeMap<u32, Vec<&DataFile>> = BTreeMap::new();
    for file in files {
        if file.level > Level::Flush.number() {
            if is_worn(file) {
                add(if file.level == Level::Day.number() { Level::Day } else { Level::Month }, vec![file]);
            }
            continue;
        }
        let day = file.bounds.max_ts.div_euclid(DAY);
        if (day + 1) * DAY + SETTLE <= now {
            days.entry(day).or_default().push(file);
        } else {
            tiers.entry(file.live_rows().max(1).ilog2() / FAN_IN.ilog2()).or_default().push(file);
        }
    }
    for mut files in days.into_values() {
        files.sort_by_key(|file| (file.rows, file.id));
        files.truncate(INPUTS_MAX);
        if files.len() > 1 || files.iter().any(|file| is_worn(file)) {
            add(Level::Day, files);
        }
    }
    for mut files in tiers.into_values() {
        files.truncate(INPUTS_MAX);
        if files.len() >= FAN_IN {
            add(Level::Flush, files);
        } else {
            files.into_iter().filter(|file| is_worn(file)).for_each(|file| add(Level::Flush, vec![file]));
        }
    }
}

#[cfg(test)]
mod tests;
