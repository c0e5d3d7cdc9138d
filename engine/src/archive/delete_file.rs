//! Positional delete files: which rows of one data file are superseded or deleted.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowWriter, PARQUET_FIELD_ID_META_KEY, ProjectionMask,
        arrow_reader::ParquetRecordBatchReaderBuilder, arrow_writer::ArrowWriterOptions,
    },
    basic::Compression,
    file::properties::WriterProperties,
};
use wattlake_catalog::{DataFile, DeleteFile, NewDeleteFile};

use super::{Storage, data_file::describe};
use crate::{Error, Result};

/// Field ids that the format reserves for `file_path` and `pos`.
const FILE_PATH_ID: &str = "2147483646";
const POS_ID: &str = "2147483645";

/// Writes the cumulative delete file of a data file; `positions` are 0-based rows, sorted, each once.
pub(crate) async fn write_delete_file(
    storage: &Storage,
    file: &DataFile,
    positions: Vec<u64>,
) -> Result<NewDeleteFile> {
    let count = positions.len() as u64;
    let bytes = encode(&format!("{}measurements/{}", storage.data_path(), file.stored.path), positions)?;
    let stored = describe(Storage::new_delete_path(), &bytes)?;
    storage.put(&stored.path, bytes).await?;
    let replaces = file.delete.as_ref().map(|delete| delete.id);
    Ok(NewDeleteFile { data_file_id: file.id, replaces, stored, count })
}

fn encode(data_file: &str, positions: Vec<u64>) -> Result<Bytes> {
    let field = |name: &str, data_type, id: &str| {
        let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_owned())]);
        Field::new(name, data_type, false).with_metadata(id)
    };
    let schema = Arc::new(Schema::new(vec![
        field("file_path", DataType::Utf8, FILE_PATH_ID),
        field("pos", DataType::Int64, POS_ID),
    ]));
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(positions.iter().map(|_| data_file)));
    let rows: ArrayRef = Arc::new(Int64Array::from_iter_values(positions.into_iter().map(|p| p as i64)));
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)?;
    writer.write(&RecordBatch::try_new(schema, vec![paths, rows])?)?;
    Ok(Bytes::from(writer.into_inner()?))
}

/// The rows of a data file that no longer count, sorted.
pub(crate) async fn deleted_rows(storage: &Storage, file: &DataFile) -> Result<Vec<u64>> {
    match &file.delete {
        Some(delete) => read_positions(storage, delete).await,
        None => Ok(Vec::new()),
    }
}

async fn read_positions(storage: &Storage, delete: &DeleteFile) -> Result<Vec<u64>> {
    let bytes = storage.read_whole(&delete.stored).await?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)?;
    let mask = ProjectionMask::leaves(builder.parquet_schema(), [1]);
    let mut positions = Vec::with_capacity(delete.count as usize);
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let column = batch.column(0).as_any().downcast_ref::<Int64Array>();
        let column = column.ok_or_else(|| {
            Error::corrupt(format!("delete file {}: pos is not an integer", delete.stored.path))
        })?;
        positions.extend(column.values().iter().map(|p| *p as u64));
    }
    if positions.len() as u64 != delete.count || !positions.is_sorted() {
        return Err(Error::corrupt(format!(
            "delete file {}: expected {} sorted positions, found {}",
            delete.stored.path,
            delete.count,
            positions.len()
        )));
    }
    Ok(positions)
}
