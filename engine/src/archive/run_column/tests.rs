//! What is written is what Parquet's own reader finds, in values, statistics and page index.

use arrow::array::{Array, AsArray};
use parquet::{
    arrow::arrow_reader::{
        ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector,
    },
    file::{
        metadata::PageIndexPolicy, page_index::column_index::ColumnIndexMetaData,
        properties::WriterProperties, writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

use super::*;

const PAGE_ROWS: usize = 50;

/// A file of two columns with the same texts, which must be there and may be missing, in row groups.
fn write(groups: &[Vec<(String, usize)>]) -> Bytes {
    let schema = "message m { required binary a (UTF8); optional binary b (UTF8); }";
    let schema = Arc::new(parse_message_type(schema).expect("schema"));
    let mut file =
        SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::new())).expect("writer");
    let columns = file.schema_descr().columns().to_vec();
    for runs in groups {
        let mut group = file.next_row_group().expect("row group");
        for column in &columns {
            let mut texts = RunColumn::default();
            for (text, rows) in runs {
                texts.push(text, rows / 2);
                texts.push(text, rows - rows / 2);
            }
            let zstd = ZstdLevel::try_new(1).expect("level");
            let (bytes, close) = texts.finish(column, zstd, PAGE_ROWS).expect("chunk");
            group.append_column(&bytes, close).expect("append");
        }
        group.close().expect("close");
    }
    Bytes::from(file.into_inner().expect("file"))
}

fn open(file: &Bytes) -> ArrowReaderMetadata {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    ArrowReaderMetadata::load(file, options).expect("footer")
}

fn read(file: &Bytes, selection: Option<RowSelection>) -> [Vec<String>; 2] {
    let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file.clone(), open(file));
    if let Some(selection) = selection {
        builder = builder.with_row_selection(selection);
    }
    let mut columns = [Vec::new(), Vec::new()];
    for batch in builder.build().expect("reader") {
        let batch = batch.expect("batch");
        for (texts, array) in columns.iter_mut().zip(batch.columns()) {
            assert_eq!(array.null_count(), 0);
            texts.extend(array.as_string::<i32>().iter().flatten().map(str::to_owned));
        }
    }
    columns
}

/// Few texts and many, in runs as short as one row and longer than a page.
fn any_runs() -> impl Strategy<Value = Vec<(String, usize)>> {
    let length = prop_oneof![3 => 1usize..4, 2 => 5usize..20, 1 => 1usize..200];
    (1u32..300).prop_flat_map(move |texts| {
        prop::collection::vec(((0..texts).prop_map(|n| format!("text {n}")), length.clone()), 1..150)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn texts_come_back(groups in prop::collection::vec(any_runs(), 1..3), skip in 0usize..400, take in 1usize..200) {
        let file = write(&groups);
        let rows_of = |runs: &Vec<(String, usize)>| -> Vec<String> {
            runs.iter().flat_map(|(text, rows)| std::iter::repeat_n(text.clone(), *rows)).collect()
        };
        let expected: Vec<String> = groups.iter().flat_map(rows_of).collect();
        for column in read(&file, None) {
            prop_assert_eq!(&column, &expected);
        }
        let skip = skip.min(expected.len() - 1);
        let take = take.min(expected.len() - skip);
        let selection = RowSelection::from(vec![RowSelector::skip(skip), RowSelector::select(take)]);
        for column in read(&file, Some(selection)) {
            prop_assert_eq!(&column[..], &expected[skip..skip + take]);
        }

        let footer = open(&file);
        let metadata = footer.metadata();
        for (g, runs) in groups.iter().enumerate() {
            let rows = rows_of(runs);
            for c in 0..2 {
                let chunk = metadata.row_group(g).column(c);
                prop_assert_eq!(chunk.num_values(), rows.len() as i64);
                let statistics = chunk.statistics().expect("statistics");
                prop_assert_eq!(statistics.min_bytes_opt(), rows.iter().min().map(|text| text.as_bytes()));
                prop_assert_eq!(statistics.max_bytes_opt(), rows.iter().max().map(|text| text.as_bytes()));
                prop_assert_eq!(statistics.null_count_opt(), Some(0));
                let index = &metadata.column_index().expect("column index")[g][c];
                let order = index.get_boundary_order();
                let ColumnIndexMetaData::BYTE_ARRAY(index) = index else { panic!("{index:?}") };
                let pages: Vec<_> = rows.chunks(PAGE_ROWS).collect();
                prop_assert_eq!(index.num_pages() as usize, pages.len());
                for (p, page) in pages.iter().enumerate() {
                    prop_assert_eq!(index.min_value(p), page.iter().min().map(|text| text.as_bytes()));
                    prop_assert_eq!(index.max_value(p), page.iter().max().map(|text| text.as_bytes()));
                }
                let bounds: Vec<_> = pages.iter().map(|page| (page.iter().min(), page.iter().max())).collect();
                let ascends = bounds.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1);
                prop_assert_eq!(order == Some(BoundaryOrder::ASCENDING), ascends);
            }
        }
    }
}

/// No bits at all, then one more at each power of two.
#[test]
fn keys_have_as_many_bits_as_they_need() {
    let widths = [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (1 << 20, 20)];
    for (values, bits) in widths {
        assert_eq!(bit_width(values), bits, "{values}");
    }
}
