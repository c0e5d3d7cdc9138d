use proptest::prelude::*;
use wattlake_catalog::{EntityId, EntityType, Quality};

use super::*;
use crate::batch::BatchSeries;

/// Rows as imports bring them: regular or not, with and without things that repeat.
fn any_rows() -> impl Strategy<Value = Rows> {
    let row = (0i64..4, any::<u64>(), 0usize..3, 0u32..2, 0i64..3, prop::option::weighted(0.1, "[a-z]{0,9}"));
    (any::<bool>(), any::<bool>(), prop::collection::vec(row, 1..300)).prop_map(|(regular, same, drawn)| {
        let mut rows = Rows::default();
        let mut time = -5;
        for (i, (step, value, quality, unit, accepted, metadata)) in drawn.into_iter().enumerate() {
            time += if regular { 900 } else { 1 + step };
            rows.ts.push(time);
            rows.value.push(f64::from_bits(value));
            rows.quality.push(Quality::ALL[if same { 0 } else { quality }]);
            rows.unit.push(UnitId(if same { 1 } else { unit }));
            rows.created_at.push(if same { 7 } else { accepted });
            rows.metadata.extend(metadata.map(|text| (i as u32, text.into_boxed_str())));
        }
        rows
    })
}

fn series_table() -> (Arc<SeriesTable>, Vec<SeriesId>) {
    let table = SeriesTable::default();
    let batch: Vec<_> = (0..3)
        .map(|i| BatchSeries {
            entity: EntityId(uuid::Uuid::from_u128(i)),
            entity_type: EntityType::Meter,
            metric: "power".to_owned(),
            unit: "kW".to_owned(),
        })
        .collect();
    let ids = table.intern(&batch).iter().map(|channel| table.read().channel(*channel).series).collect();
    (Arc::new(table), ids)
}

fn bits(rows: &Rows) -> (Vec<u64>, Rows) {
    let plain = Rows { value: vec![0.0; rows.len()], ..rows.clone() };
    (rows.value.iter().map(|value| value.to_bits()).collect(), plain)
}

fn write(folder: &Arc<SpillFolder>, parts: &[(SeriesId, Rows)]) -> (Arc<SpillFile>, Vec<u64>) {
    let mut writer = SpillWriter::create(folder).expect("create");
    let mut ends = Vec::new();
    for (series, rows) in parts {
        writer.append(*series, rows, 0..rows.len()).expect("append");
        ends.push(writer.position());
    }
    (Arc::new(writer.finish().expect("finish")), ends)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_is_spilled_comes_back(drawn in prop::collection::vec((0usize..3, any_rows()), 1..12), cut in 0usize..12) {
        let (table, ids) = series_table();
        let parts: Vec<_> = drawn.into_iter().map(|(series, rows)| (ids[series], rows)).collect();
        let dir = tempfile::TempDir::new().expect("dir");
        let folder = Arc::new(SpillFolder::create(dir.path().join("spill")).expect("folder"));
        let (file, ends) = write(&folder, &parts);
        drop(folder);
        let cut = cut.min(parts.len());
        let middle = if cut == 0 { 0 } else { ends[cut - 1] };
        let end = ends.last().copied().unwrap_or(0);
        let ranges = [(0..middle, &parts[..cut]), (middle..end, &parts[cut..])];
        for (range, expected) in ranges {
            let read: Vec<_> = SpillReader::new(Arc::clone(&file), Arc::clone(&table), range)
                .collect::<Result<_>>()
                .expect("read");
            prop_assert_eq!(read.len(), expected.len());
            for ((key, rows), (series, wanted)) in read.iter().zip(expected) {
                let expected = Arc::clone(table.read().key(*series));
                prop_assert_eq!(&**key, &*expected);
                prop_assert_eq!(bits(rows), bits(wanted));
            }
        }
        drop(file);
        prop_assert!(!dir.path().join("spill").exists(), "the folder goes with the last file");
    }

    /// Whatever byte changes, wrong rows never come back.
    #[test]
    fn damage_is_found(rows in any_rows(), at: prop::sample::Index, bit in 0u32..8) {
        let (table, ids) = series_table();
        let dir = tempfile::TempDir::new().expect("dir");
        let folder = Arc::new(SpillFolder::create(dir.path().join("spill")).expect("folder"));
        let (file, ends) = write(&folder, &[(ids[0], rows.clone()), (ids[1], rows)]);
        let mut bytes = std::fs::read(file.path()).expect("bytes");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        std::fs::write(file.path(), &bytes).expect("write");
        let read: Result<Vec<_>> = SpillReader::new(Arc::clone(&file), table, 0..ends[1]).collect();
        let error = read.expect_err("damaged");
        prop_assert!(error.message.contains("damaged"), "{error}");
    }
}

/// Long series are cut, so that a reader never holds all of one.
#[test]
fn long_series_come_in_parts() {
    let (table, ids) = series_table();
    let dir = tempfile::TempDir::new().expect("dir");
    let folder = Arc::new(SpillFolder::create(dir.path().join("spill")).expect("folder"));
    let count = PART_ROWS_MAX * 2 + 1;
    let mut rows = Rows::default();
    rows.ts.extend(0..count as i64);
    rows.value.resize(count, 1.5);
    rows.quality.resize(count, Quality::Good);
    rows.unit.resize(count, UnitId(0));
    rows.created_at.resize(count, 3);
    let (file, ends) = write(&folder, &[(ids[0], rows)]);
    let read: Vec<_> = SpillReader::new(file, table, 0..ends[0]).collect::<Result<_>>().expect("read");
    let ts: Vec<_> = read.iter().flat_map(|(_, rows)| rows.ts.iter().copied()).collect();
    assert!(read.iter().all(|(_, rows)| rows.len() <= PART_ROWS_MAX));
    assert_eq!(ts, (0..count as i64).collect::<Vec<_>>());
}
