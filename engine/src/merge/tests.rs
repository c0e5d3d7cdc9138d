use std::collections::BTreeMap;

use proptest::prelude::*;
use wattlake_catalog::{EntityId, EntityType, Quality};

use super::*;
use crate::series::UnitId;

fn chunk(series: u8, rows: &[(i64, i32)]) -> Chunk {
    let key = SeriesKey {
        entity: EntityId(uuid::Uuid::from_u128(u128::from(series % 3))),
        entity_type: EntityType::Meter,
        metric: Arc::from(["power", "soc"][usize::from(series / 3)]),
    };
    let rows = Rows {
        ts: rows.iter().map(|(ts, _)| *ts).collect(),
        value: rows.iter().map(|(_, value)| f64::from(*value)).collect(),
        quality: vec![Quality::Good; rows.len()],
        unit: vec![UnitId(0); rows.len()],
        created_at: vec![0; rows.len()],
        metadata: rows.iter().enumerate().map(|(i, (_, v))| (i as u32, v.to_string().into())).collect(),
    };
    (Arc::new(key), rows)
}

type Model = BTreeMap<(u8, i64), i32>;

/// A source with the rows of a map, cut into chunks.
fn source(model: &Model, chunk_rows: usize) -> Source {
    let all: Vec<_> = model.iter().map(|((series, ts), value)| (*series, *ts, *value)).collect();
    let chunks: Vec<_> = all
        .chunk_by(|a, b| a.0 == b.0)
        .flat_map(|rows| rows.chunks(chunk_rows))
        .map(|rows| Ok(chunk(rows[0].0, &rows.iter().map(|row| (row.1, row.2)).collect::<Vec<_>>())))
        .collect();
    Box::new(chunks.into_iter())
}

/// Metric, entity and time with the value.
type Merged = Vec<((String, u128, i64), f64)>;

fn collect(
    sources: Vec<Source>,
    on_equal: fn(&SeriesKey, Side<'_>, Side<'_>) -> Result<Winner>,
) -> Result<Merged> {
    let mut out = Vec::new();
    merge(sources, on_equal, |key, rows, range| {
        for row in range {
            assert_eq!(rows.metadata_at(row), Some(&*format!("{}", rows.value[row])));
            out.push(((key.metric.to_string(), key.entity.0.as_u128(), rows.ts[row]), rows.value[row]));
        }
        Ok(())
    })?;
    Ok(out)
}

proptest! {
    /// Whatever the sources hold and however they are cut, the last one with a key wins and the order is that of files.
    #[test]
    fn the_last_source_wins(
        sources in prop::collection::vec(
            prop_oneof![
                prop::collection::btree_map((0u8..6, 0i64..30), 0i32..100, 0..60),
                // Long stretches of one source.
                (0u8..6, 0i64..300, 1i64..200, 0i32..100).prop_map(|(series, from, rows, value)| {
                    (from..from + rows).map(|ts| ((series, ts), value)).collect()
                }),
            ],
            1..6,
        ),
        chunk_rows in 1usize..90,
    ) {
        let mut model = BTreeMap::new();
        for source in &sources {
            for ((series, ts), value) in source {
                let key = (["power", "soc"][usize::from(series / 3)].to_owned(), u128::from(series % 3), *ts);
                model.insert(key, f64::from(*value));
            }
        }
        let boxed = sources.iter().map(|map| source(map, chunk_rows)).collect();
        prop_assert_eq!(collect(boxed, |_, _, _| Ok(Winner::Later)).expect("merged"), model.into_iter().collect::<Vec<_>>());
    }
}

/// However many rows interleave, they are put in order in pieces.
#[test]
fn many_rows_interleave() {
    let rows = 100_000;
    let models: Vec<Model> = (0..3)
        .map(|source| (0..rows).map(|i| ((1, i64::from(i) * 3 + i64::from(source)), source)).collect())
        .collect();
    let sources = models.iter().map(|model| source(model, rows as usize)).collect();
    let merged = collect(sources, never_equal).expect("merged");
    assert_eq!(merged.len(), 3 * rows as usize);
    for (at, ((_, _, ts), value)) in merged.into_iter().enumerate() {
        assert_eq!((ts, value), (at as i64, (at % 3) as f64));
    }
}

/// A row that says nothing new leaves the earlier one in place, with its time of arrival.
#[test]
fn the_first_source_can_win() {
    let models =
        [Model::from([((0, 1), 5), ((1, 2), 6)]), Model::from([((0, 1), 5), ((1, 2), 7), ((1, 3), 8)])];
    let sources = models.iter().map(|model| source(model, 9)).collect();
    let mut kept = Vec::new();
    let found = merge(
        sources,
        |_, earlier, later| {
            assert_eq!((earlier.rank, later.rank), (0, 1));
            Ok(if earlier.says_the_same(&later) { Winner::Earlier } else { Winner::Later })
        },
        |_, rows, range| {
            kept.extend(rows.value[range].to_vec());
            Ok(())
        },
    );
    found.expect("merged");
    assert_eq!(kept, [5.0, 7.0, 8.0]);
}

/// MAN-2 is checked where a breach would be made permanent.
#[test]
fn two_live_rows_of_a_key_are_damage() {
    let one = Model::from([((0, 1), 5), ((1, 2), 6)]);
    let two = Model::from([((1, 2), 7)]);
    let error = collect(vec![source(&one, 9), source(&two, 9)], never_equal).expect_err("damage");
    assert!(error.kind == crate::ErrorKind::Corrupt && error.message.contains("MAN-2"), "{error}");
}

#[test]
fn rows_out_of_order_are_damage() {
    let chunks = vec![Ok(chunk(1, &[(1, 1)])), Ok(chunk(0, &[(1, 1)]))];
    let error = collect(vec![Box::new(chunks.into_iter())], never_equal).expect_err("damage");
    assert!(error.message.contains("out of order"), "{error}");
}
