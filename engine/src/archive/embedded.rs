//! Small Parquet tables inside a data file, where other readers do not look: between its page index and its footer, whose
//! metadata has their lengths. They live and die with the file and hold exactly its rows: nothing can make them stale but a
//! delete file, whose positions tell which of their rows no longer count.

use std::{ops::Range, sync::Arc};

use arrow::datatypes::{Field, Schema};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
        async_reader::AsyncFileReader,
    },
    errors::Result as ParquetResult,
    file::metadata::{KeyValue, ParquetMetaData, ParquetMetaDataReader},
};
use wattlake_catalog::DataFile;

use super::{Storage, Stretch, data_file::footer_bytes, object_reader::ObjectReader};
use crate::Result;

/// Length of the footer's length and the magic number at the end of a Parquet file.
const TAIL_BYTES: usize = 8;

/// The tables that a file may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Embedded {
    SeriesTotals,
    HourSummaries,
    DaySummaries,
}

impl From<Stretch> for Embedded {
    fn from(stretch: Stretch) -> Self {
        match stretch {
            Stretch::Hour => Self::HourSummaries,
            Stretch::Day => Self::DaySummaries,
        }
    }
}

impl Embedded {
    /// In the order of their places; the last one ends where the footer begins.
    const ALL: [Self; 3] = [Self::SeriesTotals, Self::HourSummaries, Self::DaySummaries];

    /// Key of the file's metadata that holds the length of the table in bytes.
    const fn length_key(self) -> &'static str {
        match self {
            Self::SeriesTotals => "wattlake.series_totals",
            Self::HourSummaries => "wattlake.hour_summaries",
            Self::DaySummaries => "wattlake.day_summaries",
        }
    }

    /// The entry of the file's metadata for a table of this length.
    pub(super) fn length_entry(self, table: &[u8]) -> KeyValue {
        KeyValue::new(self.length_key().to_owned(), table.len().to_string())
    }

    /// Where the table lies in a file; `None` when it has none.
    fn find(self, file: &DataFile, metadata: &ParquetMetaData) -> Option<Range<u64>> {
        let entries = metadata.file_metadata().key_value_metadata()?;
        let length = |table: Self| {
            let entry = entries.iter().find(|entry| entry.key == table.length_key());
            entry.and_then(|entry| entry.value.as_ref()?.parse::<u64>().ok())
        };
        let after = Self::ALL.into_iter().skip_while(|table| *table != self).skip(1).filter_map(length);
        let footer = TAIL_BYTES as u64 + file.stored.footer_bytes;
        let end = file.stored.bytes.checked_sub(after.fold(footer, u64::saturating_add))?;
        Some(end.checked_sub(length(self)?)?..end)
    }

    /// Opens the table of a file, whose columns are as `schema` says, less those that the build which wrote it did not know; `None`
    /// when it has none.
    pub(super) async fn open(
        self,
        storage: &Storage,
        file: &DataFile,
        schema: &Schema,
    ) -> Result<Option<ParquetRecordBatchStreamBuilder<EmbeddedReader>>> {
        let mut reader = ObjectReader::new(storage, &file.stored);
        let metadata = reader.get_metadata(None).await?;
        let Some(place) = self.find(file, &metadata) else { return Ok(None) };
        let mut reader = EmbeddedReader { file: reader, place };
        let metadata = reader.get_metadata(None).await?;
        let root = metadata.file_metadata().schema();
        let is_there =
            |field: &&Arc<Field>| root.get_fields().iter().any(|there| there.name() == field.name());
        let there: Vec<_> = schema.fields().iter().filter(is_there).cloned().collect();
        let options = ArrowReaderOptions::new().with_schema(Arc::new(Schema::new(there)));
        let metadata = ArrowReaderMetadata::try_new(metadata, options)?;
        Ok(Some(ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)))
    }
}

/// Puts tables, in the order of their places, before the footer of a file whose metadata has their lengths.
pub(super) fn embed(file: &mut Vec<u8>, tables: &[Vec<u8>]) -> Result<()> {
    let footer = file.len() - TAIL_BYTES - footer_bytes(file)? as usize;
    file.splice(footer..footer, tables.concat());
    Ok(())
}

/// A Parquet file inside another one.
pub(super) struct EmbeddedReader {
    file: ObjectReader,
    place: Range<u64>,
}

impl AsyncFileReader for EmbeddedReader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        let start = self.place.start;
        self.file.get_bytes(start + range.start..start + range.end)
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        let start = self.place.start;
        self.file.get_byte_ranges(ranges.iter().map(|r| start + r.start..start + r.end).collect())
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            let bytes = self.place.end - self.place.start;
            let reader = ParquetMetaDataReader::new().with_prefetch_hint(Some(bytes.min(64 << 10) as usize));
            reader.load_and_finish(self, bytes).await.map(Arc::new)
        }
        .boxed()
    }
}
