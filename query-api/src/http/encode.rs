//! Result formats: JSON, NDJSON, CSV, Arrow IPC stream, Parquet, written batch by batch.

use std::{collections::HashSet, io::Write, str::FromStr, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    ipc::writer::StreamWriter,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use parquet::arrow::ArrowWriter;

use crate::error::{ApiError, Kind, Result};

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OutputFormat {
    Json,
    NdJson,
    Csv,
    Arrow,
    Parquet,
}

impl FromStr for OutputFormat {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "json" => Ok(Self::Json),
            "ndjson" => Ok(Self::NdJson),
            "csv" => Ok(Self::Csv),
            "arrow" => Ok(Self::Arrow),
            "parquet" => Ok(Self::Parquet),
            _ => Err(ApiError::invalid(format!(
                "format: unknown value `{text}`; valid are json, ndjson, csv, arrow, parquet"
            ))),
        }
    }
}

impl OutputFormat {
    /// The format that `?format=` or else the Accept header asks for; JSON when neither does.
    pub(super) fn negotiate(parameter: Option<&str>, headers: &HeaderMap) -> Result<Self> {
        if let Some(name) = parameter {
            return name.parse();
        }
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        let mut offers = accept.split(',').map(|part| part.split(';').next().unwrap_or_default().trim());
        offers
            .find_map(|offer| match offer {
                "application/json" | "*/*" | "application/*" | "text/html" | "" => Some(Self::Json),
                "application/x-ndjson" | "application/ndjson" => Some(Self::NdJson),
                "text/csv" => Some(Self::Csv),
                "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
                "application/vnd.apache.parquet" => Some(Self::Parquet),
                _ => None,
            })
            .ok_or_else(|| {
                ApiError::invalid(format!(
                    "Accept: `{accept}` has no format of ours; valid are application/json, application/x-ndjson, \
                     text/csv, application/vnd.apache.arrow.stream, application/vnd.apache.parquet"
                ))
            })
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Json => "application/json",
            Self::NdJson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        })
    }
}

/// Where writers write and the answer takes its bytes from.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

enum Writer {
    Json(Box<arrow::json::ArrayWriter<Sink>>),
    NdJson(Box<arrow::json::LineDelimitedWriter<Sink>>),
    Csv(Box<arrow::csv::Writer<Sink>>),
    Arrow(Box<StreamWriter<Sink>>),
    Parquet(Box<ArrowWriter<Sink>>),
}

/// Encodes the batches of one answer.
pub(crate) struct Encoder {
    sink: Sink,
    writer: Writer,
    /// Columns of the answer have the same name.
    has_same_names: bool,
}

/// Columns of one name would be lost in JSON, and mixed up by most readers of the other formats: the second `n` is `n_2`. `None`: all
/// names differ.
fn names_apart(schema: &SchemaRef) -> Option<SchemaRef> {
    let mut taken: HashSet<String> = schema.fields().iter().map(|field| field.name().clone()).collect();
    if taken.len() == schema.fields().len() {
        return None;
    }
    let mut seen = HashSet::new();
    let fields = schema.fields().iter().map(|field| {
        let name = field.name();
        if seen.insert(name.clone()) {
            return Arc::clone(field);
        }
        let free = (2..).map(|n| format!("{name}_{n}")).find(|name| taken.insert(name.clone()));
        Arc::new(field.as_ref().clone().with_name(free.unwrap_or_default()))
    });
    Some(Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone())))
}

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(Kind::Internal, format!("the result cannot be written: {error}"))
}

impl Encoder {
    pub(crate) fn new(format: OutputFormat, schema: &SchemaRef) -> Result<Self> {
        let renamed = names_apart(schema);
        let has_same_names = renamed.is_some();
        let schema = renamed.as_ref().unwrap_or(schema);
        let sink = Sink::default();
        let json = || arrow::json::WriterBuilder::new().with_explicit_nulls(true);
        let writer = match format {
            OutputFormat::Json => Writer::Json(Box::new(json().build(sink.clone()))),
            OutputFormat::NdJson => Writer::NdJson(Box::new(json().build(sink.clone()))),
            OutputFormat::Csv => {
                Writer::Csv(Box::new(arrow::csv::WriterBuilder::new().with_header(true).build(sink.clone())))
            }
            OutputFormat::Arrow => {
                Writer::Arrow(Box::new(StreamWriter::try_new(sink.clone(), schema).map_err(failed)?))
            }
            OutputFormat::Parquet => Writer::Parquet(Box::new(
                ArrowWriter::try_new(sink.clone(), Arc::clone(schema), None).map_err(failed)?,
            )),
        };
        let empty = RecordBatch::new_empty(Arc::clone(schema));
        let mut encoder = Self { sink, writer, has_same_names };
        // CSV readers expect the header even of an empty result.
        if format == OutputFormat::Csv {
            encoder.write(&empty)?;
        }
        Ok(encoder)
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let renamed = match self.has_same_names.then(|| names_apart(batch.schema_ref())).flatten() {
            Some(schema) => Some(RecordBatch::try_new(schema, batch.columns().to_vec()).map_err(failed)?),
            None => None,
        };
        let batch = renamed.as_ref().unwrap_or(batch);
        match &mut self.writer {
            Writer::Json(writer) => writer.write(batch).map_err(failed),
            Writer::NdJson(writer) => writer.write(batch).map_err(failed),
            Writer::Csv(writer) => writer.write(batch).map_err(failed),
            Writer::Arrow(writer) => writer.write(batch).map_err(failed),
            Writer::Parquet(writer) => writer.write(batch).map_err(failed),
        }
    }

    pub(crate) fn finish(&mut self) -> Result<()> {
        match &mut self.writer {
            Writer::Json(writer) => writer.finish().map_err(failed),
            Writer::NdJson(writer) => writer.finish().map_err(failed),
            Writer::Csv(_) => Ok(()),
            Writer::Arrow(writer) => writer.finish().map_err(failed),
            Writer::Parquet(writer) => writer.finish().map(drop).map_err(failed),
        }
    }

    /// The bytes written since the last call.
    pub(crate) fn take(&self) -> Bytes {
        Bytes::from(std::mem::take(&mut *self.sink.0.lock()))
    }
}

/// Streams an answer. The first batch is awaited before the status is sent, so that most errors are proper ones; a later
/// one breaks the body off, which every client notices.
pub(super) async fn respond(
    format: OutputFormat,
    schema: SchemaRef,
    mut batches: impl Stream<Item = Result<RecordBatch>> + Send + Unpin + 'static,
) -> Result<Response> {
    let first = batches.next().await.transpose()?;
    let mut encoder = Encoder::new(format, &schema)?;
    if let Some(first) = first {
        encoder.write(&first)?;
    }
    let head = encoder.take();
    let tail = stream::unfold(Some((encoder, batches)), |state| async {
        let (mut encoder, mut batches) = state?;
        let step = match batches.next().await {
            Some(batch) => batch.and_then(|batch| encoder.write(&batch)).map(|()| true),
            None => encoder.finish().map(|()| false),
        };
        match step {
            Ok(true) => Some((Ok(encoder.take()), Some((encoder, batches)))),
            Ok(false) => Some((Ok(encoder.take()), None)),
            Err(error) => {
                tracing::warn!(%error, "a result broke off");
                Some((Err(error), None))
            }
        }
    });
    let body = stream::once(async { Ok::<_, ApiError>(head) })
        .chain(tail)
        .filter(|chunk| std::future::ready(!matches!(chunk, Ok(bytes) if bytes.is_empty())))
        // The compressor asks again after the end.
        .fuse();
    Ok(([(header::CONTENT_TYPE, format.content_type())], Body::from_stream(body)).into_response())
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::Int64Array,
        datatypes::{DataType, Field},
    };

    use super::*;

    #[test]
    fn no_column_is_lost_where_names_are_the_same() {
        let fields: Vec<_> =
            ["n", "n", "n_2", "n"].map(|name| Field::new(name, DataType::Int64, false)).into();
        let schema = Arc::new(Schema::new(fields));
        let columns = (1..=4).map(|n| Arc::new(Int64Array::from(vec![n])) as _).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("a batch");
        for (format, text) in [
            (OutputFormat::Json, r#"[{"n":1,"n_3":2,"n_2":3,"n_4":4}]"#),
            (OutputFormat::Csv, "n,n_3,n_2,n_4\n1,2,3,4\n"),
        ] {
            let mut encoder = Encoder::new(format, &schema).expect("an encoder");
            encoder.write(&batch).and_then(|()| encoder.finish()).expect("written");
            assert_eq!(encoder.take(), text);
        }
    }
}
