//! Flush: frozen readings become sorted Parquet files; what they supersede goes into positional delete files; both are
//! published with the WAL watermark in one catalog transaction (MAN-1, MAN-2).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{Timestamp, tz::TimeZone};
use wattlake_catalog::{Catalog, CommitRequest, DataFile, Manifest, NewDeleteFile, SnapshotId};

use crate::{
    Error, Result,
    archive::{
        FileRows, KeyMatch, Storage, WantedSeries, find_rows, read_positions, write_data_file,
        write_delete_file,
    },
    memtable::HotRow,
    version::{HotSeries, HotView, Versions},
};

/// What a flush works with.
pub(crate) struct Flusher {
    pub storage: Storage,
    pub catalog: Arc<Catalog>,
    pub versions: Arc<Versions>,
}

impl Flusher {
    /// Writes out the oldest frozen memtable. Call it under the flush lock; `None` when nothing is frozen.
    pub(crate) async fn flush_oldest(&self) -> Result<Option<(SnapshotId, u64)>> {
        let version = self.versions.current();
        let Some(frozen) = version.frozen.first() else { return Ok(None) };
        let view = HotView::of_frozen(frozen, &self.versions.series);
        let mut rows = view.select(i64::MIN, i64::MAX, |_| true);
        let marks: Vec<_> =
            rows.iter().filter_map(|series| Some((series.id, series.rows.last()?.ts))).collect();
        let new_deletes = self.supersede(&version.manifest, &view, &mut rows).await?;
        let mut new_files = Vec::new();
        for (month, rows) in by_month(rows)? {
            new_files.push(write_data_file(&self.storage, &view, &month, rows).await?);
        }
        let request = CommitRequest {
            new_files,
            new_deletes,
            wal_sequence: Some(frozen.last_sequence),
            message: format!("flush through log sequence {}", frozen.last_sequence),
        };
        let manifest = self.publish(&version.manifest, &request).await?;
        let snapshot = manifest.snapshot;
        self.versions.publish(manifest, &marks, true);
        Ok(Some((snapshot, frozen.last_sequence)))
    }

    /// Commits from an owned task: a database transaction is never torn by whoever stops waiting.
    async fn publish(&self, base: &Manifest, request: &CommitRequest) -> Result<Manifest> {
        let (catalog, owned) = (Arc::clone(&self.catalog), request.clone());
        let result = tokio::spawn(async move { catalog.commit(&owned).await })
            .await
            .map_err(|error| Error::internal(format!("the commit panicked: {error}")))??;
        Ok(base.after(request, &result))
    }

    /// Looks up late rows in the files that may hold their keys. A row that is there unchanged is dropped from `rows`;
    /// a changed one goes into the file's cumulative delete file.
    async fn supersede(
        &self,
        manifest: &Manifest,
        view: &HotView,
        rows: &mut [HotSeries],
    ) -> Result<Vec<NewDeleteFile>> {
        let late: Vec<usize> = (0..rows.len())
            .filter(|i| {
                let mark = self.versions.high_water(rows[*i].id);
                rows[*i].rows.first().is_some_and(|row| row.ts <= mark)
            })
            .collect();
        let mut new_deletes = Vec::new();
        let mut unchanged: Vec<BTreeSet<i64>> = vec![BTreeSet::new(); rows.len()];
        for file in &manifest.files {
            let (indexes, wanted) = wanted_in(file, rows, &late);
            if wanted.is_empty() {
                continue;
            }
            let matches = find_rows(&self.storage, file, &wanted).await?;
            if matches.is_empty() {
                continue;
            }
            let before = match &file.delete {
                Some(delete) => read_positions(&self.storage, delete).await?,
                None => Vec::new(),
            };
            let mut superseded = Vec::new();
            for found in matches {
                if before.binary_search(&found.position).is_ok() {
                    continue;
                }
                let index = indexes[found.series];
                let ts = wanted[found.series].times[found.time];
                let series = &rows[index].rows;
                match series.binary_search_by_key(&ts, |row| row.ts) {
                    Ok(at) if is_same(view, &series[at], &found) => {
                        unchanged[index].insert(ts);
                    }
                    _ => superseded.push(found.position),
                }
            }
            if !superseded.is_empty() {
                let mut positions = before;
                positions.extend(superseded);
                positions.sort_unstable();
                new_deletes.push(write_delete_file(&self.storage, file, positions).await?);
            }
        }
        for (series, unchanged) in rows.iter_mut().zip(unchanged) {
            if !unchanged.is_empty() {
                series.rows.retain(|row| !unchanged.contains(&row.ts));
            }
        }
        Ok(new_deletes)
    }
}

/// The late series with times in a file's range, with their indexes in `rows`.
fn wanted_in(file: &DataFile, rows: &[HotSeries], late: &[usize]) -> (Vec<usize>, Vec<WantedSeries>) {
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
pub(crate) fn wanted_series(file: &DataFile, series: &HotSeries) -> Option<WantedSeries> {
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
    let from = series.rows.partition_point(|row| row.ts < bounds.min_ts);
    let to = series.rows.partition_point(|row| row.ts <= bounds.max_ts);
    let times: Vec<_> = series.rows[from..to].iter().map(|row| row.ts).collect();
    (!times.is_empty()).then(|| WantedSeries {
        metric: Arc::clone(&series.key.metric),
        entity: series.key.entity,
        times,
    })
}

/// Whether a reading says the same as the stored row, so that writing it again would change nothing.
fn is_same(view: &HotView, row: &HotRow, found: &KeyMatch) -> bool {
    row.value.to_bits() == found.value.to_bits()
        && row.quality.as_str() == found.quality
        && row.metadata.as_deref() == found.metadata.as_deref()
        && *view.unit(row) == *found.unit
}

/// Splits rows by UTC month (`2026-01`), each part in the order of files.
fn by_month(rows: Vec<HotSeries>) -> Result<BTreeMap<String, FileRows>> {
    let mut months: BTreeMap<String, FileRows> = BTreeMap::new();
    for series in rows {
        let HotSeries { id, key, rows } = series;
        let mut rest = rows.as_slice();
        while let Some(first) = rest.first() {
            let (month, end) = month_of(first.ts)?;
            let len = rest.partition_point(|row| row.ts < end);
            let (head, tail) = rest.split_at(len);
            let part = HotSeries { id, key: Arc::clone(&key), rows: head.to_vec() };
            months.entry(month).or_default().push(part);
            rest = tail;
        }
    }
    Ok(months)
}

/// The UTC month of an instant, and where the next one starts.
fn month_of(micros: i64) -> Result<(String, i64)> {
    let out_of_range = |error: jiff::Error| Error::internal(format!("time {micros} us: {error}"));
    let date = Timestamp::from_microsecond(micros).map_err(out_of_range)?.to_zoned(TimeZone::UTC).date();
    let next = date.last_of_month().tomorrow().map_err(out_of_range)?;
    let end = next.to_zoned(TimeZone::UTC).map_err(out_of_range)?.timestamp().as_microsecond();
    Ok((date.strftime("%Y-%m").to_string(), end))
}
