use proptest::prelude::*;
use wattlake_catalog::{DeleteFile, FileBounds, StoredFile};

use super::*;

/// 2026-03-10T12:00:00Z.
const NOW: i64 = 1_773_144_000_000_000;
const HOUR: i64 = 3_600_000_000;

fn file(id: i64, level: Level, day: i64, rows: u64, deleted: u64) -> Arc<DataFile> {
    let stored = StoredFile {
        path: id.to_string(),
        bytes: rows * 2,
        footer_bytes: 1,
        blake3: String::new(),
        sums: wattlake_catalog::BlockSums::default(),
    };
    let start = NOW - NOW.rem_euclid(DAY) + day * DAY;
    let delete = (deleted > 0).then(|| DeleteFile { id: 0, stored: stored.clone(), count: deleted });
    let text = || "x".to_owned();
    Arc::new(DataFile {
        id,
        stored,
        rows,
        row_group_rows: 1 << 20,
        level: level.number(),
        bounds: FileBounds {
            min_ts: start,
            max_ts: start + HOUR,
            min_entity: text(),
            max_entity: text(),
            min_metric: text(),
            max_metric: text(),
        },
        delete,
    })
}

fn inputs(files: &[Arc<DataFile>], everything: bool) -> Vec<(Level, Vec<i64>)> {
    let jobs = plan(files, NOW, everything).expect("a plan");
    jobs.into_iter().map(|job| (job.level, job.inputs)).collect()
}

#[test]
fn days_that_are_over_become_one_file() {
    let files: Vec<_> = (0..5).map(|i| file(i, Level::Flush, -1, 1000 + i as u64, 0)).collect();
    assert_eq!(inputs(&files, false), [(Level::Day, vec![0, 1, 2, 3, 4])]);
    assert_eq!(inputs(&files[..1], false), [], "one file is left as it is");
    let today: Vec<_> = (0..5).map(|i| file(i, Level::Flush, 0, 1000, 0)).collect();
    assert_eq!(inputs(&today, false), [], "the day is not over");
}

#[test]
fn files_of_one_size_are_merged_eight_at_a_time() {
    let mut files: Vec<_> = (0..8).map(|i| file(i, Level::Flush, 0, 1000, 0)).collect();
    files.push(file(8, Level::Flush, 0, 1_000_000, 0));
    assert_eq!(inputs(&files, false), [(Level::Flush, (0..8).collect())]);
}

#[test]
fn months_that_are_over_become_few_large_files() {
    let files: Vec<_> = (0..50).map(|i| file(i, Level::Day, -20, 1000, 0)).collect();
    let first = inputs(&files, false);
    assert_eq!((first[0].0, first[0].1.len()), (Level::Month, INPUTS_MAX));
    let done = [file(1, Level::Month, -20, 5_000_000, 0)];
    assert_eq!(inputs(&done, false), []);
    let with_late =
        |rows| vec![file(1, Level::Month, -20, 5_000_000, 0), file(2, Level::Flush, -20, rows, 0)];
    assert_eq!(inputs(&with_late(1000), false), [], "a few late rows wait");
    assert_eq!(inputs(&with_late(600_000), false), [(Level::Month, vec![1, 2])]);
    assert_eq!(inputs(&with_late(1000), true), [(Level::Month, vec![1, 2])]);
    let large = [file(1, Level::Month, -20, FINAL_ROWS, 0), file(2, Level::Month, -20, FINAL_ROWS, 0)];
    assert_eq!(inputs(&large, false), []);
    // Few rows with much metadata: merging them would only make as many files again.
    let heavy = (0..3).map(|id| {
        let mut heavy = (*file(id, Level::Month, -20, 60_000, 0)).clone();
        heavy.stored.bytes = FINAL_BYTES;
        Arc::new(heavy)
    });
    assert_eq!(inputs(&heavy.collect::<Vec<_>>(), true), []);
}

#[test]
fn worn_files_are_rewritten() {
    for (level, day) in [(Level::Flush, 0), (Level::Day, -2), (Level::Month, -20)] {
        assert_eq!(inputs(&[file(1, level, day, 1000, 51)], false), [(level, vec![1])]);
        assert_eq!(inputs(&[file(1, level, day, 1000, 50)], false), []);
    }
}

proptest! {
    /// No file is in two jobs, and doing what is due comes to an end.
    #[test]
    fn plans_are_disjoint_and_come_to_rest(
        specs in prop::collection::vec((0i64..3, -70i64..1, 1u64..30_000_000, 0u64..2), 0..80),
        everything: bool,
    ) {
        let levels = [Level::Flush, Level::Day, Level::Month];
        let mut files: Vec<_> = specs
            .iter()
            .enumerate()
            .map(|(id, (level, day, rows, worn))| file(id as i64, levels[*level as usize], *day, *rows, worn * rows / 2))
            .collect();
        let mut next_id = files.len() as i64;
        for round in 0.. {
            let jobs = plan(&files, NOW, everything).expect("a plan");
            if jobs.is_empty() {
                break;
            }
            prop_assert!(round < 50, "never at rest: {jobs:?}");
            let mut used: Vec<_> = jobs.iter().flat_map(|job| job.inputs.clone()).collect();
            used.sort_unstable();
            prop_assert!(used.windows(2).all(|pair| pair[0] != pair[1]));
            for job in jobs {
                prop_assert!(job.inputs.len() <= INPUTS_MAX);
                let (merged, rest): (Vec<_>, Vec<_>) = files.into_iter().partition(|f| job.inputs.contains(&f.id));
                files = rest;
                let rows = merged.iter().map(|f| f.live_rows()).sum();
                let max_ts = merged.iter().map(|f| f.bounds.max_ts).max().expect("inputs");
                let mut output = (*file(next_id, job.level, 0, rows, 0)).clone();
                output.bounds = FileBounds { min_ts: merged[0].bounds.min_ts, max_ts, ..output.bounds };
                files.push(Arc::new(output));
                next_id += 1;
            }
        }
    }
}
