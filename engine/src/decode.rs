//! Decoders: bodies of JSON, NDJSON, CSV, Arrow, Parquet and line protocol into rows.

mod arrow_stream;
mod body;
mod codes;
mod csv;
mod json;
mod line_protocol;
mod parts;
mod table;
mod time;

use std::str::FromStr;

pub(crate) use body::decompressed;
pub use body::{ContentEncoding, decompress};
pub use parts::{Part, Parts};
pub use time::{TimePrecision, parse_timestamp};

use crate::{
    Error, Result,
    ingest::{Body, Collector, IngestRequest},
};

/// How readings are written in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    Json,
    NdJson,
    Csv,
    ArrowStream,
    Parquet,
    LineProtocol,
}

impl BodyFormat {
    /// The word that names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::NdJson => "ndjson",
            Self::Csv => "csv",
            Self::ArrowStream => "arrow",
            Self::Parquet => "parquet",
            Self::LineProtocol => "line-protocol",
        }
    }

    /// The format that a Content-Type names; parameters such as `charset` are ignored.
    ///
    /// # Errors
    /// Naming the valid types.
    pub fn from_content_type(content_type: &str) -> Result<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Ok(Self::Json),
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Ok(Self::NdJson),
            "text/csv" => Ok(Self::Csv),
            "application/vnd.apache.arrow.stream" => Ok(Self::ArrowStream),
            "application/vnd.apache.parquet" | "application/x-parquet" => Ok(Self::Parquet),
            _ => Err(Error::invalid(format!(
                "Content-Type `{content_type}` is not supported; valid are application/json, application/x-ndjson, \
                 text/csv, application/vnd.apache.arrow.stream, application/vnd.apache.parquet (line protocol goes \
                 to /api/v2/write)"
            ))),
        }
    }
}

impl FromStr for BodyFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "json" => Ok(Self::Json),
            "ndjson" | "jsonl" => Ok(Self::NdJson),
            "csv" => Ok(Self::Csv),
            "arrow" | "arrows" => Ok(Self::ArrowStream),
            "parquet" => Ok(Self::Parquet),
            "lp" | "line-protocol" => Ok(Self::LineProtocol),
            _ => Err(Error::invalid(format!(
                "unknown format `{text}`; valid are csv, json, ndjson, parquet, arrow, line-protocol"
            ))),
        }
    }
}

/// Decodes a body into the collector.
///
/// # Errors
/// When the body as a whole cannot be read; bad rows go into the collector's report.
pub(crate) fn decode(request: &IngestRequest, collector: &mut Collector) -> Result<()> {
    let body = match &request.body {
        Body::Table(batch) => return table::decode_batch(request, batch, collector),
        Body::Bytes(body) => body,
    };
    match request.format {
        BodyFormat::Json => json::decode_json(request, body, collector),
        BodyFormat::NdJson => json::decode_ndjson(request, body, collector),
        BodyFormat::Csv => csv::decode(request, body, collector),
        BodyFormat::ArrowStream => table::decode_arrow(request, body, collector),
        BodyFormat::Parquet => table::decode_parquet(request, body, collector),
        BodyFormat::LineProtocol => {
            line_protocol::decode(request, body, collector);
            Ok(())
        }
    }
}
