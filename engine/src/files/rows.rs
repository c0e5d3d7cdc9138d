//! [`FileRows`]: readings of a file in columns, with the lines that they stand in.

use std::{collections::BTreeMap, sync::Arc};

use ahash::HashMap;
use arrow::{
    array::{
        ArrayRef, DictionaryArray, Float64Array, Int32Array, RecordBatch, StringArray,
        TimestampMicrosecondArray,
    },
    datatypes::{DataType, Field, Int32Type, Schema, TimeUnit},
};
use serde::{Deserialize, Serialize};
use wattlake_catalog::{Category, Quality, ReadingFrequency};

use crate::Result;

/// Key of [`MeterHint`]s in the metadata of a table's schema.
pub(crate) const HINTS: &str = "wattlake.meters";

/// A line that could not be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedLine {
    /// 1-based.
    pub line: u64,
    pub message: String,
}

/// What a file tells of a meter that may have to be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MeterHint {
    pub category: Category,
    pub reading_frequency: Option<ReadingFrequency>,
}

/// A series of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileSeries {
    entity: i32,
    metric: i32,
    unit: i32,
}

/// Texts by their numbers.
#[derive(Debug, Default)]
struct Names {
    numbers: HashMap<String, i32>,
    texts: Vec<String>,
}

impl Names {
    fn number(&mut self, text: &str) -> i32 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.texts.len() as i32;
        self.numbers.insert(text.to_owned(), number);
        self.texts.push(text.to_owned());
        number
    }

    fn column(&self, codes: Vec<i32>) -> Result<ArrayRef> {
        let values = StringArray::from_iter_values(&self.texts);
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(Int32Array::from(codes), Arc::new(values))?))
    }
}

/// Readings of a file. Names of series stay from one table to the next.
#[derive(Debug, Default)]
pub(crate) struct FileRows {
    entities: Names,
    metrics: Names,
    units: Names,
    hints: BTreeMap<String, MeterHint>,
    series: Vec<FileSeries>,
    ts: Vec<i64>,
    value: Vec<f64>,
    quality: Vec<Quality>,
    lines: Vec<u64>,
    refused: Vec<RefusedLine>,
}

impl FileRows {
    pub(super) fn len(&self) -> usize {
        self.ts.len()
    }

    pub(super) fn refused(&self) -> &[RefusedLine] {
        &self.refused
    }

    pub(super) fn series(&mut self, entity: &str, metric: &str, unit: &str) -> FileSeries {
        FileSeries {
            entity: self.entities.number(entity),
            metric: self.metrics.number(metric),
            unit: self.units.number(unit),
        }
    }

    /// What is known of a meter; of two hints the first one stays.
    pub(super) fn hint(&mut self, entity: &str, category: Category, seconds: Option<i64>) {
        if !self.hints.contains_key(entity) {
            let same = |frequency: &&ReadingFrequency| Some(frequency.seconds()) == seconds;
            let reading_frequency = ReadingFrequency::ALL.iter().find(same).copied();
            self.hints.insert(entity.to_owned(), MeterHint { category, reading_frequency });
        }
    }

    /// Takes a reading; `ts` in microseconds since 1970 UTC.
    pub(super) fn push(&mut self, series: FileSeries, ts: i64, value: f64, quality: Quality, line: u64) {
        self.series.push(series);
        self.ts.push(ts);
        self.value.push(value);
        self.quality.push(quality);
        self.lines.push(line);
    }

    pub(super) fn refuse(&mut self, line: u64, message: impl Into<String>) {
        self.refused.push(RefusedLine { line, message: message.into() });
    }

    /// What was taken so far as a table, the line of each of its rows, and the lines that were refused. Names stay.
    pub(crate) fn take(&mut self) -> Result<(RecordBatch, Vec<u64>, Vec<RefusedLine>)> {
        let series = std::mem::take(&mut self.series);
        let quality = std::mem::take(&mut self.quality);
        let mut qualities = Names::default();
        for quality in Quality::ALL {
            qualities.number(quality.as_str());
        }
        let code =
            |quality: &Quality| Quality::ALL.iter().position(|known| known == quality).unwrap_or(0) as i32;
        let utc: Arc<str> = Arc::from("UTC");
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("entity_id", self.entities.column(series.iter().map(|series| series.entity).collect())?),
            ("metric", self.metrics.column(series.iter().map(|series| series.metric).collect())?),
            (
                "timestamp",
                Arc::new(
                    TimestampMicrosecondArray::from(std::mem::take(&mut self.ts))
                        .with_timezone(Arc::clone(&utc)),
                ),
            ),
            ("value", Arc::new(Float64Array::from(std::mem::take(&mut self.value)))),
            ("unit", self.units.column(series.iter().map(|series| series.unit).collect())?),
            ("quality", qualities.column(quality.iter().map(code).collect())?),
        ];
        let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, _)| match *name {
                "timestamp" => Field::new(
                    *name,
                    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::clone(&utc))),
                    false,
                ),
                "value" => Field::new(*name, DataType::Float64, false),
                _ => Field::new(*name, text.clone(), false),
            })
            .collect();
        let hints = serde_json::to_string(&self.hints).unwrap_or_default();
        let schema = Schema::new(fields).with_metadata([(HINTS.to_owned(), hints)].into());
        let batch =
            RecordBatch::try_new(Arc::new(schema), columns.into_iter().map(|(_, column)| column).collect())?;
        Ok((batch, std::mem::take(&mut self.lines), std::mem::take(&mut self.refused)))
    }

    /// Entity, metric, time, value, unit, quality and line of each reading.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<(&str, &str, i64, f64, &str, Quality, u64)> {
        (0..self.len())
            .map(|i| {
                let series = self.series[i];
                (
                    self.entities.texts[series.entity as usize].as_str(),
                    self.metrics.texts[series.metric as usize].as_str(),
                    self.ts[i],
                    self.value[i],
                    self.units.texts[series.unit as usize].as_str(),
                    self.quality[i],
                    self.lines[i],
                )
            })
            .collect()
    }
}
