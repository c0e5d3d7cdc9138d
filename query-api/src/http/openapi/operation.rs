//! One operation.

use utoipa::openapi::{
    Content, HttpMethod, Required, ResponseBuilder, SecurityRequirement, Type,
    header::HeaderBuilder,
    path::{OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
};

use super::parts::{Part, list, object, of_type, schema, text, uuid};

/// A body or an answer, by content type.
pub(super) type Bodies = Vec<(&'static str, Option<Part>)>;

pub(super) fn as_json(part: Part) -> Bodies {
    vec![("application/json", Some(part))]
}

/// Rows in every format that can be asked for.
pub(super) fn rows() -> Bodies {
    vec![
        ("application/json", Some(list(object()))),
        ("application/x-ndjson", None),
        ("text/csv", None),
        ("application/vnd.apache.arrow.stream", None),
        ("application/vnd.apache.parquet", None),
    ]
}

/// What can be asked at a path.
pub(super) struct Operation {
    pub method: HttpMethod,
    pub path: &'static str,
    tag: &'static str,
    pub summary: &'static str,
    is_open: bool,
    pub parameters: Vec<(&'static str, Part, &'static str)>,
    /// Parameters that may come several times.
    repeated: &'static [&'static str],
    body: Option<Bodies>,
    answers: Vec<(u16, &'static str, Bodies)>,
    is_paged: bool,
}

impl Operation {
    pub(super) fn new(
        method: HttpMethod,
        path: &'static str,
        tag: &'static str,
        summary: &'static str,
    ) -> Self {
        Self {
            method,
            path,
            tag,
            summary,
            is_open: false,
            parameters: Vec::new(),
            repeated: &[],
            body: None,
            answers: Vec::new(),
            is_paged: false,
        }
    }

    pub(super) fn open(mut self) -> Self {
        self.is_open = true;
        self
    }

    pub(super) fn with(mut self, name: &'static str, part: Part, description: &'static str) -> Self {
        self.parameters.push((name, part, description));
        self
    }

    pub(super) fn paged(mut self) -> Self {
        self.is_paged = true;
        let limit = of_type(Type::Integer).minimum(Some(1.0)).maximum(Some(10_000.0));
        self.with("limit", limit.into(), "Rows of a page; 1000 unless said").with(
            "cursor",
            text(),
            "Where the page before ended: its header X-Next-Cursor",
        )
    }

    pub(super) fn repeatable(mut self, names: &'static [&'static str]) -> Self {
        self.repeated = names;
        self
    }

    pub(super) fn body(mut self, body: Bodies) -> Self {
        self.body = Some(body);
        self
    }

    pub(super) fn answers(mut self, status: u16, description: &'static str, bodies: Bodies) -> Self {
        self.answers.push((status, description, bodies));
        self
    }

    pub(super) fn build(self) -> utoipa::openapi::path::Operation {
        let mut operation = OperationBuilder::new().tag(self.tag).summary(Some(self.summary));
        for segment in self.path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')) {
            let part = if segment == "name" { text() } else { uuid() };
            let parameter = ParameterBuilder::new().name(segment).parameter_in(ParameterIn::Path);
            operation = operation.parameter(parameter.required(Required::True).schema(Some(part)));
        }
        for (name, part, description) in self.parameters {
            let part = if self.repeated.contains(&name) { list(part) } else { part };
            let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query);
            operation = operation.parameter(
                parameter.required(Required::False).description(Some(description)).schema(Some(part)),
            );
        }
        if let Some(bodies) = self.body {
            let mut body = RequestBodyBuilder::new().required(Some(Required::True));
            for (content_type, part) in bodies {
                body = body.content(content_type, Content::new(part));
            }
            operation = operation.request_body(Some(body.build()));
        }
        for (status, description, bodies) in self.answers {
            let mut response = ResponseBuilder::new().description(description);
            for (content_type, part) in bodies {
                response = response.content(content_type, Content::new(part));
            }
            if self.is_paged {
                let header = HeaderBuilder::new()
                    .schema(Some(text()))
                    .description(Some("Asks for the next page; absent on the last"));
                response = response.header("X-Next-Cursor", header.build());
            }
            operation = operation.response(status.to_string(), response);
        }
        // Clients of InfluxDB read errors in its shape.
        let is_influx = ["/query", "/write", "/api/v2/write", "/api/v3/write_lp"].contains(&self.path);
        let error = if is_influx { object() } else { schema("Error") };
        let failed = ResponseBuilder::new()
            .description("What is wrong, and what would be right")
            .content("application/json", Content::new(Some(error)));
        operation = operation.response("default", failed);
        if !self.is_open {
            operation = operation.security(SecurityRequirement::new("token", Vec::<String>::new()));
        }
        operation.build()
    }
}
