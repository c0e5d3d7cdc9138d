//! Flush: frozen readings become sorted Parquet files; what they supersede goes into positional delete files; both are
//! published with the WAL watermark in one catalog transaction (MAN-1, MAN-2).

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use jiff::{Timestamp, tz::TimeZone};
use wattlake_catalog::{CommitRequest, DataFile, NewDataFile, SnapshotId, failpoint, seeded_bug};

use crate::{
    Error, Result,
    archive::{
        DataFileEncoder, EncodedFile, KeyMatch, Level, Storage, WantedSeries, deleted_rows, find_rows,
    },
    background,
    changes::Changes,
    journal::Journal,
    publish::publish,
    rows::{Rows, SeriesRows},
    series::SeriesTable,
    version::{HotView, Versions},
};

/// What a flush works with.
pub(crate) struct Flusher {
    pub storage: Storage,
    pub journal: Arc<Journal>,
    pub versions: Arc<Versions>,
}

impl Flusher {
    /// Writes out the oldest frozen memtable. Call it under the flush lock; `None` when nothing is frozen.
    pub(crate) async fn flush_oldest(&self) -> Result<Option<(SnapshotId, u64)>> {
        let version = self.versions.current();
        let Some(frozen) = version.frozen.first() else { return Ok(None) };
        failpoint!("flush.start");
        let view = HotView::of_frozen(frozen, &self.versions.series);
        let sorted = view.clone();
        let mut rows =
            background::run("flush-sort", move || Ok(sorted.select(i64::MIN, i64::MAX, |_| true))).await?;
        let marks: Vec<_> =
            rows.iter().filter_map(|series| Some((series.id, *series.rows.ts.last()?))).collect();
        let is_late = |series: &SeriesRows| {
            let mark = self.versions.high_water(series.id);
            series.rows.ts.first().is_some_and(|ts| *ts <= mark)
        };
        let late: Vec<usize> = (0..rows.len()).filter(|i| is_late(&rows[*i])).collect();
        let table = &self.versions.series;
        let mut changes = supersede(&self.storage, table, &version.manifest.files, &late, &mut rows).await?;
        changes.new_files.extend(self.write_files(&view, rows).await?);
        let request = CommitRequest {
            new_files: changes.new_files,
            new_deletes: changes.new_deletes,
            removed: changes.removed,
            wal_sequence: Some(frozen.last_sequence + u64::from(seeded_bug!("bug.watermark_too_high"))),
            progress: frozen.memtable.progress(),
            message: format!("flush through log sequence {}", frozen.last_sequence),
            ..CommitRequest::default()
        };
        failpoint!("flush.before_catalog");
        let snapshot = publish(&self.journal, &self.versions, &request, &marks).await?;
        failpoint!("flush.after_catalog");
        Ok(Some((snapshot, frozen.last_sequence)))
    }

    /// Encodes rows and stores them, a file a month.
    async fn write_files(&self, view: &HotView, rows: Vec<SeriesRows>) -> Result<Vec<NewDataFile>> {
        let view = view.clone();
        let encoded = background::run("flush-encode", move || encode_months(&view, &rows)).await?;
        let mut files = Vec::with_capacity(encoded.len());
        for EncodedFile { file, bytes } in encoded {
            failpoint!("flush.before_put");
            self.storage.put(&file.stored.path, bytes).await?;
            files.push(file);
        }
        Ok(files)
    }
}

/// Looks up rows in the files that may hold their keys: those of the series in `late`. A row that is there unchanged is
/// dropped from `rows`; a changed one is taken out of the file.
pub(crate) async fn supersede(
    storage: &Storage,
    table: &Arc<SeriesTable>,
    files: &[Arc<DataFile>],
    late: &[usize],
    rows: &mut [SeriesRows],
) -> Result<Changes> {
    let mut changes = Changes::default();
    let mut unchanged: Vec<BTreeSet<i64>> = vec![BTreeSet::new(); rows.len()];
    for file in files {
        let (indexes, wanted) = wanted_in(file, rows, late);
        if wanted.is_empty() {
            continue;
        }
        let matches = find_rows(storage, file, &wanted).await?;
        if matches.is_empty() {
            continue;
        }
        let before = deleted_rows(storage, file).await?;
        let mut superseded = Vec::new();
        for found in matches {
            if before.binary_search(&found.position).is_ok() {
                continue;
            }
            let index = indexes[found.series];
            let ts = wanted[found.series].times[found.time];
            let series = &rows[index].rows;
            match series.ts.binary_search(&ts) {
                Ok(at) if is_same(table, series, at, &found) => {
                    unchanged[index].insert(ts);
                }
                _ => superseded.push(found.position),
            }
        }
        changes.take_out(storage, table, file, before, superseded).await?;
    }
    for (series, unchanged) in rows.iter_mut().zip(unchanged) {
        if !unchanged.is_empty() {
            let kept = (0..series.rows.len() as u32)
                .filter(|row| !unchanged.contains(&series.rows.ts[*row as usize]));
            series.rows = series.rows.pick(&kept.collect::<Vec<_>>());
        }
    }
    Ok(changes)
}

/// The late series with times in a file's range, with their indexes in `rows`.
fn wanted_in(file: &DataFile, rows: &[SeriesRows], late: &[usize]) -> (Vec<usize>, Vec<WantedSeries>) {
    let mut indexes = Vec::new();
    let mut wanted = Vec::new();
    for &index in late {
        if let Some(series) = wanted_series(file, &rows[index]) {
            indexes.push(index);
            wanted.push(series);
        }
    }
    (indexes, wanted)
}

/// The keys of a series that a file may hold, by the manifest's bounds.
pub(crate) fn wanted_series(file: &DataFile, series: &SeriesRows) -> Option<WantedSeries> {
    let bounds = &file.bounds;
    let entity = series.key.entity.to_string();
    let metric = &*series.key.metric;
    if entity < bounds.min_entity
        || entity > bounds.max_entity
        || metric < bounds.min_metric.as_str()
        || metric > bounds.max_metric.as_str()
    {
        return None;
    }
    let times = series.rows.ts[series.rows.range(bounds.min_ts, bounds.max_ts.saturating_add(1))].to_vec();
    (!times.is_empty()).then(|| WantedSeries {
        metric: Arc::clone(&series.key.metric),
        entity: series.key.entity,
        times,
    })
}

/// Whether a reading says the same as the stored row, so that writing it again would change nothing.
pub(crate) fn is_same(table: &SeriesTable, rows: &Rows, at: usize, found: &KeyMatch) -> bool {
    rows.value[at].to_bits() == found.value.to_bits()
        && rows.quality[at].as_str() == found.quality
        && rows.metadata_at(at) == found.metadata.as_deref()
        && *table.unit(rows.unit[at]) == *found.unit
}

/// A file for each UTC month (`2026-01`) of the rows.
fn encode_months(view: &HotView, rows: &[SeriesRows]) -> Result<Vec<EncodedFile>> {
    let encode = |(month, parts): (String, Vec<(usize, Range<usize>)>)| {
        let mut encoder = DataFileEncoder::new(Level::Flush)?;
        for (index, range) in parts {
            encoder.append(&rows[index].key, &rows[index].rows, range, &|unit| view.unit(unit))?;
        }
        encoder.finish(&month)
    };
    by_month(rows)?.into_iter().map(encode).collect()
}

/// Which rows of which series lie in which UTC month.
pub(crate) type Months = BTreeMap<String, Vec<(usize, Range<usize>)>>;

/// Splits rows by month, each part in the order of files.
pub(crate) fn by_month(rows: &[SeriesRows]) -> Result<Months> {
    let mut months = Months::new();
    for (index, series) in rows.iter().enumerate() {
        let ts = &series.rows.ts;
        let mut start = 0;
        while let Some(first) = ts.get(start) {
            let (month, end) = month_of(*first)?;
            let stop = start + ts[start..].partition_point(|ts| *ts < end);
            months.entry(month).or_default().push((index, start..stop));
            start = stop;
        }
    }
    Ok(months)
}

/// The UTC month of an instant, and where the next one starts.
pub(crate) fn month_of(micros: i64) -> Result<(String, i64)> {
    let out_of_range = |error: jiff::Error| Error::internal(format!("time {micros} us: {error}"));
    let date = Timestamp::from_microsecond(micros).map_err(out_of_range)?.to_zoned(TimeZone::UTC).date();
    let next = date.last_of_month().tomorrow().map_err(out_of_range)?;
    let end = next.to_zoned(TimeZone::UTC).map_err(out_of_range)?.timestamp().as_microsecond();
    Ok((date.strftime("%Y-%m").to_string(), end))
}
