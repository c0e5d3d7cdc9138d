//! [`ReadView`]: one consistent picture for one query.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Range, RangeInclusive},
    sync::Arc,
};

use wattlake_catalog::{DataFile, EntityId, Manifest};

use crate::{
    Error, LatestReading, Result, SeriesKey, SeriesRows, SeriesTotals, Storage, StoredReading, Stretch,
    StretchSummary,
    archive::{Level, WantedSeries, deleted_rows, find_rows, read_row_ranges, read_summaries, read_times},
    flush::wanted_series,
    version::{HotView, Versions},
};

/// What one query reads: the files of a snapshot and the readings in memory, frozen in time.
#[derive(Clone, Debug)]
pub struct ReadView {
    pub manifest: Arc<Manifest>,
    pub hot: HotView,
    pub(crate) versions: Arc<Versions>,
    pub(crate) storage: Storage,
}

impl ReadView {
    /// Those of some times, in order, at which a series has no reading.
    pub(crate) async fn missing(&self, key: &SeriesKey, mut times: Vec<i64>) -> Result<Vec<i64>> {
        let (Some(first), Some(last)) = (times.first().copied(), times.last().copied()) else {
            return Ok(times);
        };
        for series in self.hot.select(first, last.saturating_add(1), |other| other == key) {
            times.retain(|ts| series.rows.ts.binary_search(ts).is_err());
        }
        for file in &self.manifest.files {
            let (metric, entity) = (Arc::clone(&key.metric), key.entity);
            let bounds = &file.bounds;
            let may_hold = bounds.min_ts <= last
                && bounds.max_ts >= first
                && (bounds.min_metric.as_str()..=bounds.max_metric.as_str()).contains(&&*metric)
                && bounds.may_hold_any(&BTreeSet::from([entity]));
            if !may_hold || times.is_empty() {
                continue;
            }
            let matches =
                find_rows(&self.storage, file, &[WantedSeries { metric, entity, times: times.clone() }])
                    .await?;
            let deleted = deleted_rows(&self.storage, file).await?;
            let found: BTreeSet<i64> = matches
                .iter()
                .filter(|found| deleted.binary_search(&found.position).is_err())
                .map(|found| times[found.time])
                .collect();
            times.retain(|ts| !found.contains(ts));
        }
        Ok(times)
    }

    /// Times with `from <= ts < to` of the readings of each series that `wanted` picks, in order; by metric and entity. `None`: there
    /// are more than `limit`.
    pub(crate) async fn times(
        &self,
        from: i64,
        to: i64,
        limit: usize,
        wanted: impl Fn(&SeriesKey) -> bool,
    ) -> Result<Option<BTreeMap<(Arc<str>, EntityId), Vec<i64>>>> {
        let mut found: BTreeMap<_, Vec<i64>> = BTreeMap::new();
        let mut count = 0;
        for series in self.hot.select(from, to, &wanted) {
            count += series.rows.len();
            found.insert((Arc::clone(&series.key.metric), series.key.entity), series.rows.ts);
        }
        for file in &self.manifest.files {
            if file.bounds.min_ts >= to || file.bounds.max_ts < from || count > limit {
                continue;
            }
            let hidden = deleted_rows(&self.storage, file).await?;
            read_times(&self.storage, file, &hidden, |key, ts| {
                let inside = ts.partition_point(|ts| *ts < from)..ts.partition_point(|ts| *ts < to);
                if inside.is_empty() || count > limit || !wanted(key) {
                    return Ok(());
                }
                count += inside.len();
                let times = found.entry((Arc::clone(&key.metric), key.entity)).or_default();
                times.extend_from_slice(&ts[inside]);
                Ok(())
            })
            .await?;
        }
        for times in found.values_mut() {
            times.sort_unstable();
            times.dedup();
        }
        Ok((count <= limit).then_some(found))
    }

    /// The rows of a file that this view must not show: deleted ones, and those that a reading in memory supersedes.
    /// `hot_late` comes from [`ReadView::late_rows`].
    pub async fn hidden_rows(&self, file: &DataFile, hot_late: &[SeriesRows]) -> Result<Vec<u64>> {
        let mut hidden = deleted_rows(&self.storage, file).await?;
        let wanted: Vec<_> = hot_late.iter().filter_map(|series| wanted_series(file, series)).collect();
        if !wanted.is_empty() {
            let found = find_rows(&self.storage, file, &wanted).await?;
            hidden.extend(found.iter().map(|found| found.position));
            hidden.sort_unstable();
            hidden.dedup();
        }
        Ok(hidden)
    }

    /// The hours or days of a metric in a file, of entities in a range; `None` when the file does not hold them. Readings in memory
    /// are not looked at.
    pub async fn summaries(
        &self,
        file: &DataFile,
        stretch: Stretch,
        metric: &str,
        entities: &RangeInclusive<EntityId>,
    ) -> Result<Option<Vec<StretchSummary>>> {
        let read = read_summaries(&self.storage, file, stretch, Some(metric), entities).await?;
        let Some(mut found) = read else { return Ok(None) };
        let hidden = deleted_rows(&self.storage, file).await?;
        if !hidden.is_empty() {
            for one in &mut found {
                let next = hidden.partition_point(|position| *position < one.rows.start);
                one.is_whole &= hidden.get(next).is_none_or(|position| *position >= one.rows.end);
            }
        }
        Ok(Some(found))
    }

    /// Whether a file may hold totals of its series: it does unless they would be nearly as large as its rows.
    pub fn may_have_totals(file: &DataFile) -> bool {
        Level::of_number(file.level) > Level::Flush
    }

    /// The totals of the series of a file; `None` when it does not hold them. They count all of its rows, also those that this
    /// view must not show.
    pub async fn series_totals(&self, file: &DataFile) -> Result<Option<Arc<SeriesTotals>>> {
        self.versions.totals.of_file(&self.storage, &self.manifest, file).await
    }

    /// Some stretches of a file's rows, which ascend and lie apart, without those that this view must not show. Answers the
    /// readings of each; `hot_late` comes from [`ReadView::late_rows`].
    pub async fn row_ranges(
        &self,
        file: &DataFile,
        ranges: &[Range<u64>],
        hot_late: &[SeriesRows],
    ) -> Result<Vec<Vec<StoredReading>>> {
        let hidden = self.hidden_rows(file, hot_late).await?;
        read_row_ranges(&self.storage, file, ranges, &hidden).await
    }

    /// The newest reading of each series that `wanted` picks, by metric and entity. What was found is kept for views of the same
    /// state and later ones.
    ///
    /// # Errors
    /// Files that cannot be read.
    ///
    /// # Cancel safety
    /// What was begun goes on: the first time it may take longer than a question may.
    pub async fn latest(&self, wanted: impl Fn(&SeriesKey) -> bool) -> Result<Vec<LatestReading>> {
        let (manifest, versions) = (Arc::clone(&self.manifest), Arc::clone(&self.versions));
        let storage = self.storage.clone();
        let work = tokio::spawn(async move { versions.latest.in_files(&storage, &manifest).await });
        let in_files =
            work.await.map_err(|error| Error::internal(format!("looking for the newest: {error}")))?;
        let all = in_files?.into_iter().chain(self.hot.latest());
        let mut newest: Vec<LatestReading> = all.filter(|reading| wanted(&reading.key)).collect();
        newest.sort_by(|a, b| a.key.sort_key().cmp(&b.key.sort_key()));
        newest.dedup_by(|hot, in_file| {
            let is_same = hot.key.sort_key() == in_file.key.sort_key();
            // A reading in memory as new as the one in files supersedes it.
            if is_same && hot.ts >= in_file.ts {
                std::mem::swap(hot, in_file);
            }
            is_same
        });
        Ok(newest)
    }

    /// Tells states of the archive apart: the snapshot, and how many readings lie in memory beside it. Between two flushes
    /// readings are only added.
    pub fn stamp(&self) -> (i64, usize) {
        (self.manifest.snapshot.0, self.hot.rows())
    }

    /// The same picture of some of the files only.
    #[must_use]
    pub fn with_files(&self, files: Vec<Arc<DataFile>>) -> Self {
        Self { manifest: Arc::new(Manifest { snapshot: self.manifest.snapshot, files }), ..self.clone() }
    }

    /// Readings in memory that may supersede rows in files.
    pub fn late_rows(&self, from: i64, to: i64, wanted: impl Fn(&SeriesKey) -> bool) -> Vec<SeriesRows> {
        self.hot.late(&self.versions, from, to, wanted)
    }

    pub fn storage(&self) -> &Storage {
        &self.storage
    }
}
