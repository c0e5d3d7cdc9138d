//! Imports that go on after their process was killed: the runs on disk stay, with what was read when they were written.
//!
//! A folder holds the runs, a description of each (numbers of series and units are those of the process that wrote it), and the names of
//! those that count together with the caller's state. A run that is not whole any more is none: then the import begins anew.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use ahash::HashMap;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use wattlake_catalog::{EntityId, EntityType, FileBounds};
use wattlake_config::Settings;

use super::{
    MonthRun, Run, RunData,
    spill::{Names, SpillFile, SpillFolder},
};
use crate::{
    BatchSeries, Clock, Error, Result,
    series::{SeriesId, SeriesTable, UnitId},
};

/// Runs of an import that nobody goes on with are kept so long.
const KEPT_DAYS: i64 = 3;
const DAY: i64 = 86_400_000_000;
const CHECKPOINT: &str = "checkpoint.json";

/// What counts of a folder.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Checkpoint {
    /// Names of runs, oldest first.
    runs: Vec<String>,
    state: String,
}

/// A run as another process finds it.
#[derive(Debug, Serialize, Deserialize)]
struct KeptRun {
    bytes: u64,
    months: Vec<KeptMonth>,
    /// Each series with its latest time.
    series: Vec<KeptSeries>,
    units: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptMonth {
    name: String,
    bounds: FileBounds,
    rows: u64,
    parts: Range<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptSeries {
    id: u32,
    entity: EntityId,
    entity_type: EntityType,
    metric: String,
    last: i64,
}

/// The folder of an import that can go on.
#[derive(Debug)]
pub(super) struct Resumable {
    path: PathBuf,
    checkpoint: Checkpoint,
    /// What was read when the run that is being sorted was begun.
    pub sorting: Option<String>,
}

/// A folder, and what another process has left in it.
pub(super) struct Opened {
    pub resumable: Resumable,
    pub folder: Arc<SpillFolder>,
    pub runs: Vec<Run>,
    pub state: Option<String>,
}

/// Where imports that broke off are kept.
fn root(settings: &Settings) -> PathBuf {
    settings.data_dir.0.join("imports")
}

/// Forgets imports that nobody went on with.
pub(crate) fn forget_old(settings: &Settings, clock: &Clock) {
    let Ok(entries) = fs::read_dir(root(settings)) else { return };
    for entry in entries.flatten() {
        let changed = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let changed = changed.and_then(|changed| Timestamp::try_from(changed).ok());
        if changed.is_some_and(|changed| clock.now_micros() - changed.as_microsecond() > KEPT_DAYS * DAY) {
            tracing::info!(import = %entry.path().display(), "an import that broke off days ago is forgotten");
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A file that is whole whenever it is there.
fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("write", path, &error);
    let text = serde_json::to_vec(value).map_err(|error| Error::internal(error.to_string()))?;
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, text).map_err(failed)?;
    fs::rename(&unfinished, path).map_err(failed)
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

impl Resumable {
    /// The folder of an import, with the runs and the state that another process has left there. `name`: the same for the same import.
    pub(super) fn open(settings: &Settings, series: &Arc<SeriesTable>, name: &str) -> Result<Opened> {
        let path = root(settings).join(name);
        let found = read_json::<Checkpoint>(&path.join(CHECKPOINT));
        let folder = Arc::new(SpillFolder::create(path.clone())?);
        if let Some(checkpoint) = found {
            let runs = checkpoint.runs.iter().map(|run| load(&folder, &path, series, run));
            if let Some(runs) = runs.collect::<Option<Vec<_>>>() {
                let state = Some(checkpoint.state.clone());
                let resumable = Self { path, checkpoint, sorting: None };
                return Ok(Opened { resumable, folder, runs, state });
            }
            tracing::warn!(import = %path.display(), "what is left of an import that broke off is damaged; it begins anew");
        }
        let resumable = Self { path, checkpoint: Checkpoint::default(), sorting: None };
        resumable.clear()?;
        Ok(Opened { resumable, folder, runs: Vec::new(), state: None })
    }

    /// Begins anew.
    fn clear(&self) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("clear", &self.path, &error);
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    /// Keeps a run that was written, and what was read until then.
    pub(super) fn keep(&mut self, run: &Run, series: &SeriesTable) -> Result<()> {
        let (Some(state), Some(kept)) = (self.sorting.take(), KeptRun::of(run, series)) else {
            return Ok(());
        };
        let (name, kept) = kept;
        write_json(&self.path.join(format!("{name}.json")), &kept)?;
        self.checkpoint.runs.push(name);
        self.checkpoint.state = state;
        write_json(&self.path.join(CHECKPOINT), &self.checkpoint)
    }
}

impl KeptRun {
    /// The name of a spilled run, and what is to be known of it.
    fn of(run: &Run, table: &SeriesTable) -> Option<(String, Self)> {
        let mut name = None;
        let months = run.months.iter().filter_map(|(month, of_month)| {
            let RunData::Spilled { file, parts } = &of_month.data else { return None };
            name = Some(file.name());
            let MonthRun { bounds, rows, .. } = of_month;
            Some(KeptMonth { name: month.clone(), bounds: bounds.clone(), rows: *rows, parts: parts.clone() })
        });
        let months = months.collect();
        let known = table.read();
        let series = run.marks.iter().map(|(id, last)| {
            let key = known.key(*id);
            let (entity, entity_type, metric) = (key.entity, key.entity_type, key.metric.to_string());
            KeptSeries { id: id.0, entity, entity_type, metric, last: *last }
        });
        let units = known.units().iter().map(ToString::to_string).collect();
        Some((name?, Self { bytes: run.spilled_bytes, months, series: series.collect(), units }))
    }
}

/// Takes up a run of another process; `None`: it is not whole.
fn load(folder: &Arc<SpillFolder>, path: &Path, table: &SeriesTable, name: &str) -> Option<Run> {
    let kept: KeptRun = read_json(&path.join(format!("{name}.json")))?;
    let batch = kept.series.iter().map(|series| BatchSeries {
        entity: series.entity,
        entity_type: series.entity_type,
        metric: series.metric.clone(),
        unit: String::new(),
    });
    let channels = table.intern(&batch.collect::<Vec<_>>());
    let ids = || {
        let known = table.read();
        channels.iter().map(move |channel| known.channel(*channel).series)
    };
    let marks: HashMap<SeriesId, i64> = ids().zip(kept.series.iter().map(|series| series.last)).collect();
    let series: HashMap<u32, SeriesId> = kept.series.iter().map(|series| series.id).zip(ids()).collect();
    let units: Vec<UnitId> = kept.units.iter().map(|unit| table.intern_unit(unit)).collect();
    let file = Arc::new(SpillFile::open(folder, name, kept.bytes, Names { series, units })?);
    let months: BTreeMap<String, MonthRun> = kept
        .months
        .into_iter()
        .map(|KeptMonth { name, bounds, rows, parts }| {
            (name, MonthRun { bounds, rows, data: RunData::Spilled { file: Arc::clone(&file), parts } })
        })
        .collect();
    Some(Run { months, marks, spilled_bytes: kept.bytes })
}
