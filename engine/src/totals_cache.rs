//! Totals of files' series, kept in memory: a file never changes.

use std::{collections::HashSet, sync::Arc};

use ahash::HashMap;
use parking_lot::Mutex;
use wattlake_catalog::{DataFile, Manifest};

use crate::{
    ReadView, Result, Storage,
    archive::{SeriesTotals, read_series_totals},
};

/// Totals kept at most; each takes about 150 bytes.
const KEPT_MAX: usize = 500_000;

/// What was read of files of the newest snapshots.
#[derive(Debug, Default)]
pub(crate) struct TotalsCache {
    /// By the id of the file; `None`: it has none.
    kept: Mutex<HashMap<i64, Option<Arc<SeriesTotals>>>>,
}

impl TotalsCache {
    /// The totals of a file of the manifest; `None` when it has none.
    pub(crate) async fn of_file(
        &self,
        storage: &Storage,
        manifest: &Manifest,
        file: &DataFile,
    ) -> Result<Option<Arc<SeriesTotals>>> {
        if !ReadView::may_have_totals(file) {
            return Ok(None);
        }
        if let Some(kept) = self.kept.lock().get(&file.id) {
            return Ok(kept.clone());
        }
        let read = read_series_totals(storage, file).await?.map(Arc::new);
        self.keep(file.id, read.clone(), manifest);
        Ok(read)
    }

    fn keep(&self, id: i64, read: Option<Arc<SeriesTotals>>, manifest: &Manifest) {
        let size = |totals: &Option<Arc<SeriesTotals>>| totals.as_ref().map_or(1, |t| t.batch.num_rows());
        let mut kept = self.kept.lock();
        let fits = |kept: &HashMap<i64, Option<Arc<SeriesTotals>>>| {
            kept.values().map(size).sum::<usize>() + size(&read) <= KEPT_MAX
        };
        if !fits(&kept) {
            let current: HashSet<i64> = manifest.files.iter().map(|file| file.id).collect();
            kept.retain(|id, _| current.contains(id));
        }
        if fits(&kept) {
            kept.insert(id, read);
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use wattlake_catalog::{FileBounds, SnapshotId, StoredFile};

    use super::*;

    fn file(id: i64) -> Arc<DataFile> {
        let stored = StoredFile {
            path: format!("month=2026-01/{id}.parquet"),
            bytes: 1,
            footer_bytes: 1,
            blake3: String::new(),
            sums: Default::default(),
        };
        let bounds = FileBounds {
            min_ts: 0,
            max_ts: 0,
            min_entity: String::new(),
            max_entity: String::new(),
            min_metric: String::new(),
            max_metric: String::new(),
        };
        Arc::new(DataFile { id, stored, rows: 1, row_group_rows: 1, level: 2, bounds, delete: None })
    }

    #[test]
    fn no_more_is_kept_than_fits_and_files_that_are_gone_make_room() {
        let most_of_it = || {
            let rows: ArrayRef = Arc::new(Int64Array::from(vec![1; KEPT_MAX * 2 / 3]));
            let batch = RecordBatch::try_from_iter([("rows", rows)]).expect("batch");
            Some(Arc::new(SeriesTotals { batch, series: Vec::new() }))
        };
        let manifest = |ids: &[i64]| Manifest {
            snapshot: SnapshotId(1),
            files: ids.iter().map(|id| file(*id)).collect(),
        };
        let cache = TotalsCache::default();
        let kept = || {
            let mut ids: Vec<i64> = cache.kept.lock().keys().copied().collect();
            ids.sort_unstable();
            ids
        };
        cache.keep(1, most_of_it(), &manifest(&[1, 2]));
        cache.keep(2, most_of_it(), &manifest(&[1, 2]));
        assert_eq!(kept(), [1], "there is no room for both");
        cache.keep(3, None, &manifest(&[1, 2, 3]));
        assert_eq!(kept(), [1, 3]);
        cache.keep(2, most_of_it(), &manifest(&[2, 3]));
        assert_eq!(kept(), [2, 3], "the first file is gone");
    }
}
