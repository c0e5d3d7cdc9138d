use proptest::prelude::*;

use super::*;

pub(crate) fn any_batch() -> impl Strategy<Value = Batch> {
    let series = (any::<u128>(), any::<bool>(), "[a-z_]{1,12}", "[a-zA-Z%]{0,4}").prop_map(
        |(id, is_meter, metric, unit)| BatchSeries {
            entity: EntityId(uuid::Uuid::from_u128(id)),
            entity_type: if is_meter { EntityType::Meter } else { EntityType::EnergySource },
            metric,
            unit,
        },
    );
    let row =
        (any::<prop::sample::Index>(), any::<i64>(), -1e9f64..1e9, 0u8..3, prop::option::of("[ -~]{0,20}"));
    let state = ("[ -~]{0,20}", "[ -~]{0,40}").prop_map(|(key, state)| Progress { key, state });
    let states = prop::collection::vec(state, 0..3);
    (prop::collection::vec(series, 1..5), prop::collection::vec(row, 0..40), any::<i64>(), states).prop_map(
        |(table, rows, created_at, progress)| {
            let mut batch = Batch { created_at, progress, ..Batch::default() };
            for (i, (series, ts, value, quality, metadata)) in rows.into_iter().enumerate() {
                batch.series.push(series.index(table.len()) as u32);
                batch.ts.push(ts);
                batch.value.push(value);
                batch.quality.push(quality_of(quality).expect("code"));
                batch.metadata.extend(metadata.map(|text| (i as u32, text)));
            }
            Batch { table, ..batch }
        },
    )
}

proptest! {
    #[test]
    fn batches_round_trip(batches in prop::collection::vec(any_batch(), 1..5), order in prop::collection::vec(any::<prop::sample::Index>(), 1..20)) {
        let series = SeriesTable::default();
        let readings: Vec<_> = batches.into_iter().map(|batch| batch.into_readings(&series)).collect();
        let mut decoder = ReadingsDecoder::new(&series);
        for at in order {
            let readings = &readings[at.index(readings.len())];
            let mut bytes = Vec::new();
            readings.encode(&series, &mut bytes);
            prop_assert_eq!(&decoder.decode(&bytes).expect("decodes"), readings);
        }
    }

    #[test]
    fn damaged_bytes_never_panic(batch in any_batch(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let series = SeriesTable::default();
        let mut bytes = Vec::new();
        batch.into_readings(&series).encode(&series, &mut bytes);
        let i = at.index(bytes.len());
        bytes[i] = byte;
        let mut decoder = ReadingsDecoder::new(&series);
        let _ = decoder.decode(&bytes);
        let _ = decoder.decode(&bytes[..cut.index(bytes.len())]);
    }
}
