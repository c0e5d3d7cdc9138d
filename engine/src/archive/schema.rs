//! The Arrow schema of data files.

use std::{collections::HashMap, sync::Arc};

use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;
use wattlake_catalog::columns;

/// The columns of `measurements`, strings as `text`, with their Parquet field ids.
pub fn measurement_schema(text: &DataType) -> Schema {
    let fields = columns::ALL.iter().map(|column| {
        let data_type = match column.ducklake_type {
            "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))),
            "float64" => DataType::Float64,
            _ => text.clone(),
        };
        let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), column.id.to_string())]);
        Field::new(column.name, data_type, column.nullable).with_metadata(id)
    });
    Schema::new(fields.collect::<Vec<_>>())
}
