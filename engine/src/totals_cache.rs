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
