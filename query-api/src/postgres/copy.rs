//! `COPY query TO STDOUT`: how psql's `\copy` and bulk readers take rows.

use std::sync::Arc;

use arrow_pg::{
    datatypes::arrow_schema_to_pg_fields,
    encoder::{Encoder, encode_value},
};
use datafusion::sql::sqlparser::{
    ast::{CopyLegacyCsvOption, CopyLegacyOption, CopyOption, CopySource, CopyTarget, Statement},
    dialect::PostgreSqlDialect,
    parser::Parser,
};
use futures::{Sink, SinkExt, StreamExt};
use pgwire::{
    api::{
        portal::Format,
        results::{CopyCsvOptions, CopyEncoder, CopyTextOptions, FieldInfo, Response, Tag},
    },
    error::{PgWireError, PgWireResult},
    messages::{
        PgWireBackendMessage,
        copy::{CopyData, CopyDone, CopyOutResponse},
    },
};

use super::{errors::error, session::Session, texts};
use crate::query::ResultStream;

enum Layout {
    Text(CopyTextOptions),
    Csv { options: CopyCsvOptions, has_header: bool },
    Binary,
}

/// What a statement asks to be copied out, and how; `None` for one that copies nothing to the client.
pub(super) struct CopyOut {
    query: Arc<Statement>,
    layout: Layout,
}

impl CopyOut {
    /// # Errors
    /// Options that are not possible.
    pub(super) fn of(statement: &Statement) -> PgWireResult<Option<Self>> {
        let Statement::Copy { source, to: true, target: CopyTarget::Stdout, options, legacy_options, .. } =
            statement
        else {
            return Ok(None);
        };
        let query = match source {
            CopySource::Query(query) => Statement::Query(query.clone()),
            CopySource::Table { table_name, columns } => {
                let columns: Vec<_> = columns.iter().map(ToString::to_string).collect();
                let columns = if columns.is_empty() { "*".to_owned() } else { columns.join(", ") };
                let text = format!("SELECT {columns} FROM {table_name}");
                let parsed =
                    Parser::parse_sql(&PostgreSqlDialect {}, &text).ok().and_then(|mut all| all.pop());
                parsed.ok_or_else(|| error("42601", "COPY: a table or a query is meant"))?
            }
        };
        Ok(Some(Self { query: Arc::new(query), layout: layout(options, legacy_options)? }))
    }

    /// Sends the rows as they come.
    pub(super) async fn send<C>(self, session: &Session, client: &mut C) -> PgWireResult<Response>
    where
        C: Sink<PgWireBackendMessage> + Unpin + Send,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let rows = session.server.backend.rows(session.ask(&self.query)?).await?;
        let (format, code) = match self.layout {
            Layout::Binary => (Format::UnifiedBinary, 1),
            _ => (Format::UnifiedText, 0),
        };
        let fields = Arc::new(arrow_schema_to_pg_fields(&rows.schema(), &format, None)?);
        let columns = i16::try_from(fields.len()).map_err(|_| error("54011", "too many columns"))?;
        let formats = vec![i16::from(code); fields.len()];
        let head = CopyOutResponse::new(code, columns, formats);
        client.feed(PgWireBackendMessage::CopyOutResponse(head)).await?;
        let sent = send_rows(rows, &fields, self.layout, client).await?;
        client.feed(PgWireBackendMessage::CopyDone(CopyDone::new())).await?;
        Ok(Response::Execution(Tag::new("COPY").with_rows(sent)))
    }
}

async fn send_rows<C>(
    mut rows: ResultStream,
    fields: &Arc<Vec<FieldInfo>>,
    layout: Layout,
    client: &mut C,
) -> PgWireResult<usize>
where
    C: Sink<PgWireBackendMessage> + Unpin + Send,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let is_binary = matches!(layout, Layout::Binary);
    let mut encoder = match layout {
        Layout::Text(options) => CopyEncoder::new_text(Arc::clone(fields), options),
        Layout::Csv { options, has_header } => {
            if has_header {
                let names: Vec<_> = fields.iter().map(|field| quoted(field.name(), &options)).collect();
                let line = names.join(&options.delimiter) + "\n";
                client.feed(PgWireBackendMessage::CopyData(CopyData::new(line.into()))).await?;
            }
            CopyEncoder::new_csv(Arc::clone(fields), options)
        }
        Layout::Binary => CopyEncoder::new_binary(Arc::clone(fields)),
    };
    let mut sent = 0;
    while let Some(batch) = rows.next().await {
        let batch = texts::written(fields, batch?).map_err(|e| error("XX000", e.to_string()))?;
        let schema = batch.schema();
        for row in 0..batch.num_rows() {
            for (column, field) in fields.iter().enumerate() {
                encode_value(&mut encoder, batch.column(column), row, schema.field(column), field)?;
            }
            client.feed(PgWireBackendMessage::CopyData(Encoder::take_row(&mut encoder))).await?;
        }
        sent += batch.num_rows();
    }
    if is_binary {
        if sent == 0 {
            // The header, which otherwise comes with the first row.
            client.feed(PgWireBackendMessage::CopyData(Encoder::take_row(&mut encoder))).await?;
        }
        client.feed(PgWireBackendMessage::CopyData(CopyEncoder::finish_copy_binary())).await?;
    }
    Ok(sent)
}

fn quoted(name: &str, options: &CopyCsvOptions) -> String {
    let quote = options.quote.as_str();
    let is_plain =
        !name.contains([',', '\n', '\r']) && !name.contains(quote) && !name.contains(&*options.delimiter);
    if is_plain {
        name.to_owned()
    } else {
        format!("{quote}{}{quote}", name.replace(quote, &format!("{quote}{quote}")))
    }
}

fn layout(options: &[CopyOption], legacy: &[CopyLegacyOption]) -> PgWireResult<Layout> {
    let mut format = "text".to_owned();
    let (mut delimiter, mut null, mut quote, mut escape, mut has_header) = (None, None, None, None, false);
    for option in options {
        match option {
            CopyOption::Format(name) => format = name.value.to_ascii_lowercase(),
            CopyOption::Delimiter(c) => delimiter = Some(*c),
            CopyOption::Null(text) => null = Some(text.clone()),
            CopyOption::Header(yes) => has_header = *yes,
            CopyOption::Quote(c) => quote = Some(*c),
            CopyOption::Escape(c) => escape = Some(*c),
            CopyOption::Encoding(name) if ["utf8", "utf-8"].contains(&name.to_ascii_lowercase().as_str()) => {
            }
            other => return Err(error("0A000", format!("COPY: {other} is not possible"))),
        }
    }
    for option in legacy {
        match option {
            CopyLegacyOption::Binary => format = "binary".to_owned(),
            CopyLegacyOption::Delimiter(c) => delimiter = Some(*c),
            CopyLegacyOption::Null(text) => null = Some(text.clone()),
            CopyLegacyOption::Header => has_header = true,
            CopyLegacyOption::Csv(of_csv) => {
                format = "csv".to_owned();
                for option in of_csv {
                    match option {
                        CopyLegacyCsvOption::Header => has_header = true,
                        CopyLegacyCsvOption::Quote(c) => quote = Some(*c),
                        CopyLegacyCsvOption::Escape(c) => escape = Some(*c),
                        other => return Err(error("0A000", format!("COPY: {other} is not possible"))),
                    }
                }
            }
            other => return Err(error("0A000", format!("COPY: {other} is not possible"))),
        }
    }
    let text = |c: Option<char>| c.map(String::from);
    match format.as_str() {
        "text" => {
            let mut options = CopyTextOptions::default();
            options.delimiter = text(delimiter).map_or(options.delimiter, Into::into);
            options.null_string = null.map_or(options.null_string, Into::into);
            Ok(Layout::Text(options))
        }
        "csv" => {
            let mut options = CopyCsvOptions::default();
            options.delimiter = text(delimiter).map_or(options.delimiter, Into::into);
            options.null_string = null.map_or(options.null_string, Into::into);
            options.quote = text(quote).map_or(options.quote, Into::into);
            options.escape = text(escape).map_or_else(|| options.quote.clone(), Into::into);
            Ok(Layout::Csv { options, has_header })
        }
        "binary" => Ok(Layout::Binary),
        other => {
            Err(error("0A000", format!("COPY: format `{other}` is unknown; valid are text, csv, binary")))
        }
    }
}
