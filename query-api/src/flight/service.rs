//! The calls of Flight SQL.

use std::{pin::Pin, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
    ipc::writer::IpcWriteOptions,
};
use arrow_flight::{
    Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage,
    SchemaAsIpc, Ticket,
    decode::FlightRecordBatchStream,
    encode::FlightDataEncoderBuilder,
    error::FlightError,
    flight_service_server::FlightService,
    sql::{
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
        ActionCreatePreparedStatementResult, CommandGetCatalogs, CommandGetCrossReference,
        CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys, CommandGetPrimaryKeys,
        CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo,
        CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest,
        CommandStatementQuery, CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt,
        SqlInfo, TicketStatementQuery,
        server::{FlightSqlService, PeekableFlightDataStream},
    },
};
use bytes::Bytes;
use datafusion::{common::ScalarValue, logical_expr::LogicalPlan};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::{Request, Response, Status, Streaming};
use wattlake_catalog::Access;

use super::{
    metadata,
    statements::{Prepared, Statements},
    to_status,
};
use crate::{
    error::{ApiError, Result as ApiResult},
    query::{QueryService, ResultStream, SqlRequest},
};

type Rows = <Service as FlightService>::DoGetStream;
type Answer<T> = Result<Response<T>, Status>;

/// What this protocol needs of the query service. Behind a trait object it is checked once that all of it may go from
/// thread to thread, and not for each of the calls below, which would take the compiler a minute.
#[tonic::async_trait]
trait Questions: Send + Sync {
    async fn rows(&self, question: Question) -> Result<ResultStream, Status>;

    async fn outline(&self, question: Question) -> Result<Outline, Status>;
}

struct Question {
    query: String,
    params: Vec<ScalarValue>,
    access: Access,
}

impl Question {
    fn into_request(self) -> SqlRequest {
        SqlRequest { params: self.params, ..SqlRequest::new(self.query, &self.access) }
    }
}

#[tonic::async_trait]
impl Questions for QueryService {
    async fn rows(&self, question: Question) -> Result<ResultStream, Status> {
        self.sql(question.into_request()).await.map_err(to_status)
    }

    async fn outline(&self, question: Question) -> Result<Outline, Status> {
        self.describe(question.into_request(), outline).await.map_err(to_status)
    }
}

pub(super) struct Service {
    queries: Arc<dyn Questions>,
    statements: Statements,
}

/// Columns of the answer and of the parameters.
struct Outline {
    columns: SchemaRef,
    parameters: Schema,
}

impl Service {
    pub(super) fn new(queries: Arc<QueryService>) -> Self {
        Self { queries, statements: Statements::default() }
    }

    /// Runs a query and streams its rows.
    async fn rows(&self, question: Question) -> Answer<Rows> {
        let rows = self.queries.rows(question).await?;
        let schema = plain(&rows.schema());
        let to = Arc::clone(&schema);
        let batches = rows.map(move |batch| match batch {
            Ok(batch) => to_plain(&batch, &to).map_err(FlightError::from),
            Err(error) => Err(FlightError::Tonic(Box::new(to_status(error)))),
        });
        Ok(Response::new(encode(schema, batches)))
    }

    /// The answer to a question about the server.
    fn facts(&self, batch: Result<RecordBatch, FlightError>) -> Answer<Rows> {
        let batch = batch.map_err(internal)?;
        let schema = batch.schema();
        Ok(Response::new(encode(schema, stream::once(std::future::ready(Ok(batch))))))
    }
}

fn outline(plan: &LogicalPlan) -> ApiResult<Outline> {
    let mut parameters: Vec<_> = plan.get_parameter_types()?.into_iter().collect();
    parameters.sort_by_key(|(id, _)| id.trim_start_matches('$').parse::<usize>().unwrap_or(usize::MAX));
    let fields = parameters
        .into_iter()
        .map(|(id, data_type)| Field::new(id, plain_type(&data_type.unwrap_or(DataType::Utf8)), true));
    let columns = plain(&Arc::new(plan.schema().as_arrow().clone()));
    Ok(Outline { columns, parameters: Schema::new(fields.collect::<Vec<_>>()) })
}

/// Not every client reads views of text.
fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => plain_type(values),
        other => other.clone(),
    }
}

/// The columns that a client is told of before a query runs and gets then. All may be null: a plan may find out that one is not, and
/// clients refuse rows of other columns than they were told.
fn plain(schema: &SchemaRef) -> SchemaRef {
    let fields =
        schema.fields().iter().map(|field| Field::new(field.name(), plain_type(field.data_type()), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn to_plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()));
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns.collect::<Result<_, _>>()?, &options)
}

fn encode(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
) -> Rows {
    let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(batches);
    Box::pin(encoded.map_err(|error| match error {
        FlightError::Tonic(status) => *status,
        other => internal(other),
    }))
}

fn internal(error: impl std::fmt::Display) -> Status {
    to_status(ApiError::internal(error.to_string()))
}

fn access<T>(request: &Request<T>) -> Result<Access, Status> {
    request.extensions().get::<Access>().cloned().ok_or_else(|| Status::unauthenticated("no token"))
}

/// Where the rows are to be had: here, for this ticket.
fn info(ticket: Vec<u8>, schema: &Schema, request: Request<FlightDescriptor>) -> Answer<FlightInfo> {
    let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket));
    let info = FlightInfo::new().try_with_schema(schema).map_err(internal)?;
    Ok(Response::new(info.with_endpoint(endpoint).with_descriptor(request.into_inner())))
}

/// The same command is the ticket.
fn facts_info<C: ProstMessageExt>(
    command: &C,
    batch: Result<RecordBatch, FlightError>,
    request: Request<FlightDescriptor>,
) -> Answer<FlightInfo> {
    let schema = batch.map_err(internal)?.schema();
    info(command.as_any().encode_to_vec(), &schema, request)
}

fn schema_bytes(schema: &Schema) -> Result<Bytes, Status> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) =
        SchemaAsIpc::new(schema, &options).try_into().map_err(|e: ArrowError| internal(e))?;
    Ok(bytes)
}

fn read_only<T>() -> Result<T, Status> {
    Err(Status::permission_denied("this is a read-only endpoint; readings come in over HTTP"))
}

/// One row of parameters.
async fn read_parameters(request: Request<PeekableFlightDataStream>) -> Result<Vec<ScalarValue>, Status> {
    let data = request.into_inner().map_err(|status| FlightError::Tonic(Box::new(status)));
    let mut batches = FlightRecordBatchStream::new_from_flight_data(data);
    let mut params = None;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|error| Status::invalid_argument(format!("parameters: {error}")))?;
        if batch.num_rows() == 0 {
            continue;
        }
        if batch.num_rows() > 1 || params.is_some() {
            return Err(Status::invalid_argument("parameters: one row at a time is possible"));
        }
        let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, 0));
        let values = values.collect::<Result<Vec<_>, _>>();
        params = Some(values.map_err(|error| Status::invalid_argument(format!("parameters: {error}")))?);
    }
    Ok(params.unwrap_or_default())
}

#[tonic::async_trait]
impl FlightSqlService for Service {
    type FlightService = Self;

    /// The header that was accepted is the one to send from now on, as a bearer token.
    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Answer<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>> {
        let headers = request.metadata().clone().into_headers();
        let token = crate::http::presented_token(&headers).unwrap_or_default();
        let accepted = HandshakeResponse { protocol_version: 0, payload: token.clone().into() };
        let answer: Pin<Box<dyn Stream<Item = _> + Send>> =
            Box::pin(stream::once(std::future::ready(Ok(accepted))));
        let mut response = Response::new(answer);
        if let Ok(bearer) = format!("Bearer {token}").parse() {
            response.metadata_mut().insert("authorization", bearer);
        }
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let question = Question { query: query.query.clone(), params: Vec::new(), access: access(&request)? };
        let outline = self.queries.outline(question).await?;
        let ticket = TicketStatementQuery { statement_handle: query.query.into() };
        info(ticket.as_any().encode_to_vec(), &outline.columns, request)
    }

    async fn do_get_statement(&self, ticket: TicketStatementQuery, request: Request<Ticket>) -> Answer<Rows> {
        let query = String::from_utf8(ticket.statement_handle.to_vec())
            .map_err(|_| Status::invalid_argument("the ticket is not one of ours"))?;
        self.rows(Question { query, params: Vec::new(), access: access(&request)? }).await
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let access = access(&request)?;
        let question = Question { query: query.query.clone(), params: Vec::new(), access: access.clone() };
        let outline = self.queries.outline(question).await?;
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: self.statements.add(query.query, &access.token_id),
            dataset_schema: schema_bytes(&outline.columns)?,
            parameter_schema: schema_bytes(&outline.parameters)?,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        self.statements.close(&query.prepared_statement_handle, &access(&request)?.token_id);
        Ok(())
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let token_id = access(&request)?.token_id;
        let params = read_parameters(request).await?;
        self.statements.bind(&query.prepared_statement_handle, &token_id, params).map_err(to_status)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(query.prepared_statement_handle) })
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        let access = access(&request)?;
        let prepared =
            self.statements.get(&query.prepared_statement_handle, &access.token_id).map_err(to_status)?;
        let Prepared { query: text, params, .. } = prepared;
        let outline = self.queries.outline(Question { query: text, params, access }).await?;
        info(query.as_any().encode_to_vec(), &outline.columns, request)
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<Ticket>,
    ) -> Answer<Rows> {
        let access = access(&request)?;
        let prepared =
            self.statements.get(&query.prepared_statement_handle, &access.token_id).map_err(to_status)?;
        let Prepared { query, params, .. } = prepared;
        self.rows(Question { query, params, access }).await
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, metadata::catalogs(query), request)
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(metadata::catalogs(query))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, metadata::schemas(query.clone()), request)
    }

    async fn do_get_schemas(&self, query: CommandGetDbSchemas, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(metadata::schemas(query))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, metadata::tables(query.clone()), request)
    }

    async fn do_get_tables(&self, query: CommandGetTables, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(metadata::tables(query))
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, metadata::table_types(query), request)
    }

    async fn do_get_table_types(&self, query: CommandGetTableTypes, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(metadata::table_types(query))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, metadata::sql_info(query.clone()), request)
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(metadata::sql_info(query))
    }

    async fn get_flight_info_xdbc_type_info(
        &self,
        query: CommandGetXdbcTypeInfo,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, metadata::types(query), request)
    }

    async fn do_get_xdbc_type_info(&self, query: CommandGetXdbcTypeInfo, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(metadata::types(query))
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, Ok(metadata::primary_keys()), request)
    }

    async fn do_get_primary_keys(&self, _: CommandGetPrimaryKeys, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(Ok(metadata::primary_keys()))
    }

    async fn get_flight_info_exported_keys(
        &self,
        query: CommandGetExportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, Ok(metadata::foreign_keys()), request)
    }

    async fn do_get_exported_keys(&self, _: CommandGetExportedKeys, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(Ok(metadata::foreign_keys()))
    }

    async fn get_flight_info_imported_keys(
        &self,
        query: CommandGetImportedKeys,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, Ok(metadata::foreign_keys()), request)
    }

    async fn do_get_imported_keys(&self, _: CommandGetImportedKeys, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(Ok(metadata::foreign_keys()))
    }

    async fn get_flight_info_cross_reference(
        &self,
        query: CommandGetCrossReference,
        request: Request<FlightDescriptor>,
    ) -> Answer<FlightInfo> {
        facts_info(&query, Ok(metadata::foreign_keys()), request)
    }

    async fn do_get_cross_reference(&self, _: CommandGetCrossReference, _: Request<Ticket>) -> Answer<Rows> {
        self.facts(Ok(metadata::foreign_keys()))
    }

    async fn do_put_statement_update(
        &self,
        _: CommandStatementUpdate,
        _: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        read_only()
    }

    async fn do_put_statement_ingest(
        &self,
        _: CommandStatementIngest,
        _: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        read_only()
    }

    async fn do_put_prepared_statement_update(
        &self,
        _: CommandPreparedStatementUpdate,
        _: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        read_only()
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}
