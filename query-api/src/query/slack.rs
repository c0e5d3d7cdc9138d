//! Texts of a batch may be views into buffers of which they use little, such as the dictionary of a page. Whole buffers would be sent
//! with each batch, and held as long as one of them is.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::DataType,
};

/// So much more than twice of what is used may be there, bytes.
const SLACK: usize = 16 << 10;

pub(super) fn without_slack(batch: RecordBatch) -> RecordBatch {
    let compact = |column: &ArrayRef| -> Option<ArrayRef> {
        let texts = column.as_string_view_opt().filter(|_| *column.data_type() == DataType::Utf8View)?;
        let held: usize = texts.data_buffers().iter().map(|buffer| buffer.len()).sum();
        (held > SLACK && held > 2 * texts.total_buffer_bytes_used() + SLACK)
            .then(|| Arc::new(texts.gc()) as _)
    };
    let compacted: Vec<Option<ArrayRef>> = batch.columns().iter().map(compact).collect();
    if compacted.iter().all(Option::is_none) {
        return batch;
    }
    let columns = compacted.into_iter().zip(batch.columns());
    let columns = columns.map(|(compacted, column)| compacted.unwrap_or_else(|| Arc::clone(column)));
    RecordBatch::try_new(batch.schema(), columns.collect()).unwrap_or(batch)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::StringViewArray,
        datatypes::{Field, Schema},
    };

    use super::*;

    #[test]
    fn a_slice_does_not_hold_the_whole() {
        let texts: StringViewArray =
            (0..10_000).map(|n| Some(format!("a text that has no room in a view {n}"))).collect();
        let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8View, true)]));
        let whole = RecordBatch::try_new(schema, vec![Arc::new(texts)]).expect("a batch");
        let slice = whole.slice(5_000, 3);
        let compacted = without_slack(slice.clone());
        assert_eq!(compacted, slice);
        assert!(compacted.get_array_memory_size() < 2_000, "{}", compacted.get_array_memory_size());
        let same = without_slack(whole.clone());
        assert_eq!(
            same.column(0).as_string_view().data_buffers()[0].as_ptr(),
            whole.column(0).as_string_view().data_buffers()[0].as_ptr()
        );
    }
}
