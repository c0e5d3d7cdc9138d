//! `GET /api/openapi.json`: the description of this interface, for people and for tools.

use axum::response::Response;
use utoipa::openapi::{
    ComponentsBuilder, Content, HttpMethod, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Paths,
    PathsBuilder, Ref, RefOr, Required, ResponseBuilder, Schema, SecurityRequirement, Type,
    header::HeaderBuilder,
    path::{OperationBuilder, ParameterBuilder, ParameterIn},
    request_body::RequestBodyBuilder,
    schema::{ArrayBuilder, KnownFormat, ObjectBuilder, SchemaFormat, SchemaType},
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    tag::TagBuilder,
};

use super::reply::json_response;

pub(super) async fn openapi() -> Response {
    json_response(&document())
}

type Part = RefOr<Schema>;

fn of_type(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(kind))
}

fn text() -> Part {
    of_type(Type::String).into()
}

fn named(names: &[&str]) -> Part {
    of_type(Type::String).enum_values(Some(names.iter().copied())).into()
}

/// One of some names, or null.
fn named_or_null(names: &[&str]) -> Part {
    let names = names.iter().map(|name| serde_json::json!(name)).chain([serde_json::Value::Null]);
    let kinds = SchemaType::from_iter([Type::String, Type::Null]);
    ObjectBuilder::new().schema_type(kinds).enum_values(Some(names)).into()
}

fn uuid() -> Part {
    of_type(Type::String).format(Some(SchemaFormat::Custom("uuid".to_owned()))).into()
}

fn instant() -> Part {
    of_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime))).into()
}

fn number() -> Part {
    of_type(Type::Number).into()
}

fn integer() -> Part {
    of_type(Type::Integer).into()
}

fn boolean() -> Part {
    of_type(Type::Boolean).into()
}

/// Any object.
fn object() -> Part {
    of_type(Type::Object).into()
}

fn list(items: Part) -> Part {
    ArrayBuilder::new().items(items).into()
}

fn schema(name: &str) -> Part {
    RefOr::Ref(Ref::from_schema_name(name))
}

/// Of a type, or null.
fn nullable(kind: Type) -> Part {
    ObjectBuilder::new().schema_type(SchemaType::from_iter([kind, Type::Null])).into()
}

/// An object with fields; those whose name ends in `!` are always there.
fn record(fields: Vec<(&str, Part)>) -> Part {
    let mut object = of_type(Type::Object);
    for (name, part) in fields {
        let plain = name.trim_end_matches('!');
        object = object.property(plain, part);
        if plain != name {
            object = object.required(plain);
        }
    }
    object.into()
}

/// A body or an answer, by content type.
type Bodies = Vec<(&'static str, Option<Part>)>;

fn as_json(part: Part) -> Bodies {
    vec![("application/json", Some(part))]
}

/// Rows in every format that can be asked for.
fn rows() -> Bodies {
    vec![
        ("application/json", Some(list(object()))),
        ("application/x-ndjson", None),
        ("text/csv", None),
        ("application/vnd.apache.arrow.stream", None),
        ("application/vnd.apache.parquet", None),
    ]
}

struct Operation {
    method: HttpMethod,
    path: &'static str,
    tag: &'static str,
    summary: &'static str,
    is_open: bool,
    parameters: Vec<(&'static str, Part, &'static str)>,
    /// Parameters that may come several times.
    repeated: &'static [&'static str],
    body: Option<Bodies>,
    answers: Vec<(u16, &'static str, Bodies)>,
    is_paged: bool,
}

impl Operation {
    fn new(method: HttpMethod, path: &'static str, tag: &'static str, summary: &'static str) -> Self {
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

    fn open(mut self) -> Self {
        self.is_open = true;
        self
    }

    fn with(mut self, name: &'static str, part: Part, description: &'static str) -> Self {
        self.parameters.push((name, part, description));
        self
    }

    fn paged(mut self) -> Self {
        self.is_paged = true;
        let limit = of_type(Type::Integer).minimum(Some(1.0)).maximum(Some(10_000.0));
        self.with("limit", limit.into(), "Rows of a page; 1000 unless said").with(
            "cursor",
            text(),
            "Where the page before ended: its header X-Next-Cursor",
        )
    }

    fn repeatable(mut self, names: &'static [&'static str]) -> Self {
        self.repeated = names;
        self
    }

    fn body(mut self, body: Bodies) -> Self {
        self.body = Some(body);
        self
    }

    fn answers(mut self, status: u16, description: &'static str, bodies: Bodies) -> Self {
        self.answers.push((status, description, bodies));
        self
    }

    fn build(self) -> utoipa::openapi::path::Operation {
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

fn document() -> OpenApi {
    let mut paths: Paths = PathsBuilder::new().build();
    for operation in operations() {
        let (path, method) = (operation.path, operation.method.clone());
        let item = PathItem::new(method, operation.build());
        match paths.paths.get_mut(path) {
            Some(known) => known.merge_operations(item),
            None => drop(paths.paths.insert(path.to_owned(), item)),
        }
    }
    let token = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A token of `wattlake token create`"));
    let mut components =
        ComponentsBuilder::new().security_scheme("token", SecurityScheme::Http(token.build()));
    for (name, part) in schemas() {
        components = components.schema(name, part);
    }
    let info = InfoBuilder::new()
        .title("Wattlake")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("Time series of energy fleets: writing, SQL, rollups, and the catalog of sites, meters and energy sources."));
    let tag =
        |name: &str, description: &str| TagBuilder::new().name(name).description(Some(description)).build();
    OpenApiBuilder::new()
        .info(info.build())
        .paths(paths)
        .components(Some(components.build()))
        .tags(Some([
            tag("Catalog", "Sites, meters and energy sources"),
            tag("Write", "Readings come in"),
            tag("Read", "SQL, rollups and rows"),
            tag("Sources", "Polling of vendors"),
            tag("Operations", "Health, maintenance, snapshots"),
        ]))
        .build()
}

/// What a client may say of a thing in the catalog, and what is stored of it besides.
fn thing(id: Part, says: impl Fn() -> Vec<(&'static str, Part)>) -> [Part; 3] {
    let plain = |fields: Vec<(&'static str, Part)>| {
        fields.into_iter().map(|(name, part)| (name.trim_end_matches('!'), part))
    };
    let mut draft = says();
    draft.push(("id", id.clone()));
    let mut stored: Vec<_> = says();
    stored.extend([("id!", id), ("createdAt!", instant()), ("updatedAt!", instant())]);
    [record(draft), record(plain(says()).collect()), record(stored)]
}

fn schemas() -> Vec<(&'static str, Part)> {
    let site = thing(uuid(), || {
        vec![
            ("name!", text()),
            ("location", nullable(Type::String)),
            (
                "industryType",
                named_or_null(&[
                    "residential",
                    "commercial",
                    "industrial",
                    "agricultural",
                    "public",
                    "utility",
                    "other",
                ]),
            ),
            ("description", nullable(Type::String)),
            ("metadata", object()),
            ("active", boolean()),
        ]
    });
    let meter = thing(uuid(), || {
        vec![
            ("siteId!", uuid()),
            ("parentMeterId", nullable(Type::String)),
            ("name!", text()),
            ("category!", named(&["PROD", "CONS", "STOR", "INJ"])),
            ("readingFrequency", text()),
            ("capacity", nullable(Type::Number)),
            ("description", nullable(Type::String)),
            ("metadata", object()),
            ("active", boolean()),
        ]
    });
    let source = thing(uuid(), || {
        vec![
            ("meterId!", uuid()),
            ("name!", text()),
            ("sourceType!", text()),
            ("capacity", nullable(Type::Number)),
            ("metadata", object()),
            ("active", boolean()),
        ]
    });
    let [site_draft, site_patch, site] = site;
    let [meter_draft, meter_patch, meter] = meter;
    let [source_draft, source_patch, source] = source;
    let reading = record(vec![
        ("entityId!", uuid()),
        ("timestamp!", text()),
        ("metric!", text()),
        ("value!", number()),
        ("unit", text()),
        ("quality", named(&["good", "estimated", "bad"])),
        ("metadata", object()),
    ]);
    let report =
        record(vec![("accepted!", integer()), ("rejected!", integer()), ("errors!", list(object()))]);
    let row = record(vec![
        ("id!", uuid()),
        ("entityId!", uuid()),
        ("entityType!", named(&["meter", "energy_source"])),
        ("timestamp!", instant()),
        ("metric!", text()),
        ("value!", number()),
        ("unit!", text()),
        ("quality!", named(&["good", "estimated", "bad"])),
        ("metadata", nullable(Type::Object)),
        ("createdAt!", instant()),
    ]);
    let latest = record(vec![
        ("entityId!", uuid()),
        ("entityType!", named(&["meter", "energy_source"])),
        ("metric!", text()),
        ("timestamp!", instant()),
        ("value!", number()),
        ("unit!", text()),
        ("quality!", text()),
    ]);
    let error = record(vec![("kind!", text()), ("message!", text()), ("details", list(object()))]);
    vec![
        ("SiteDraft", site_draft),
        ("SitePatch", site_patch),
        ("Site", site),
        ("MeterDraft", meter_draft),
        ("MeterPatch", meter_patch),
        ("Meter", meter),
        ("EnergySourceDraft", source_draft),
        ("EnergySourcePatch", source_patch),
        ("EnergySource", source),
        ("Reading", reading),
        ("WriteReport", report),
        ("Row", row),
        ("Latest", latest),
        (
            "Snapshot",
            record(vec![("name!", text()), ("snapshotId!", integer()), ("committedAt!", instant())]),
        ),
        ("Error", record(vec![("error!", error)])),
    ]
}

/// The five operations of a kind of thing.
fn resource(path: &'static str, one: &'static str, of: [&'static str; 3]) -> Vec<Operation> {
    use HttpMethod::{Delete, Get, Patch, Post};
    let [draft, patch, stored] = of;
    let make = |method, path, summary| Operation::new(method, path, "Catalog", summary);
    vec![
        make(Get, path, "Lists them by id").paged().answers(200, "A page", as_json(list(schema(stored)))),
        make(Post, path, "Creates one; the same id again changes it").body(as_json(schema(draft))).answers(
            201,
            "As it is stored",
            as_json(schema(stored)),
        ),
        make(Get, one, "Shows one").answers(200, "As it is stored", as_json(schema(stored))),
        make(Patch, one, "Changes fields; null clears one").body(as_json(schema(patch))).answers(
            200,
            "As it is stored",
            as_json(schema(stored)),
        ),
        make(Delete, one, "Removes one that has no children and no readings")
            .with("cascade", boolean(), "With everything below it and all readings")
            .answers(204, "It is gone", Vec::new()),
    ]
}

fn operations() -> Vec<Operation> {
    use HttpMethod::{Delete, Get, Head, Post};
    let catalog = |method, path, summary| Operation::new(method, path, "Catalog", summary);
    let write = |path, summary| Operation::new(Post, path, "Write", summary);
    let read = |path, summary| Operation::new(Get, path, "Read", summary);
    let sources = |method, path, summary| Operation::new(method, path, "Sources", summary);
    let operate = |method, path, summary| Operation::new(method, path, "Operations", summary);
    let lines = || vec![("text/plain", Some(text()))];
    let precision = || named(&["ns", "us", "ms", "s"]);
    let format = || named(&["json", "ndjson", "csv", "arrow", "parquet"]);
    let file_format = || named(&["line-protocol", "csv", "json", "parquet", "arrow"]);
    let time = "RFC 3339, a date, or like now-7d";
    let named_meter = || {
        record(vec![
            ("name!", text()),
            ("category!", named(&["PROD", "CONS", "STOR", "INJ"])),
            ("parentMeterId", uuid()),
            ("description", nullable(Type::String)),
            ("metadata", object()),
            ("readingFrequency", text()),
            ("capacity", nullable(Type::Number)),
            ("sources", list(object())),
        ])
    };
    let mut all = resource("/api/sites", "/api/sites/{id}", ["SiteDraft", "SitePatch", "Site"]);
    all.extend(resource("/api/meters", "/api/meters/{id}", ["MeterDraft", "MeterPatch", "Meter"]));
    all.extend(resource(
        "/api/energy-sources",
        "/api/energy-sources/{id}",
        ["EnergySourceDraft", "EnergySourcePatch", "EnergySource"],
    ));
    for operation in &mut all {
        if operation.method == Get && !operation.path.ends_with('}') {
            match operation.path {
                "/api/meters" => {
                    operation.parameters.push(("siteId", uuid(), "Of this site only"));
                    operation.parameters.push((
                        "tree",
                        boolean(),
                        "Nested, each with its children and sources",
                    ));
                }
                "/api/energy-sources" => operation.parameters.push(("meterId", uuid(), "Of this meter only")),
                _ => {}
            }
        }
        if operation.method == Delete && operation.path.starts_with("/api/energy-sources") {
            operation.summary = "Removes one that has no readings";
        }
    }
    all.extend([
        catalog(Get, "/api/portfolios", "The sites, under another name").paged().answers(
            200,
            "A page",
            as_json(list(schema("Site"))),
        ),
        catalog(Post, "/api/onboarding/complete", "A site with its meters and energy sources, in one go")
            .body(as_json(record(vec![("site!", schema("SiteDraft")), ("meters", list(named_meter()))])))
            .answers(
                201,
                "The ids of what was made",
                as_json(record(vec![
                    ("siteId!", uuid()),
                    ("meterIds!", list(uuid())),
                    ("sourceIds!", list(uuid())),
                ])),
            ),
        read("/api/hierarchy/{siteId}", "The meter tree of a site with newest readings and residuals")
            .answers(
                200,
                "The site and its tree",
                as_json(record(vec![("site!", schema("Site")), ("meters!", list(object()))])),
            ),
        write(
            "/api/measurements",
            "Readings as JSON, NDJSON, CSV, Arrow or Parquet; acknowledged when they are on disk",
        )
        .with("precision", precision(), "Of numbers as times")
        .with("atomic", boolean(), "All or nothing")
        .body(vec![
            ("application/json", Some(list(schema("Reading")))),
            ("application/x-ndjson", None),
            ("text/csv", None),
            ("application/vnd.apache.arrow.stream", None),
            ("application/vnd.apache.parquet", None),
        ])
        .answers(
            200,
            "What was taken, and what is wrong with the rest",
            as_json(schema("WriteReport")),
        ),
        read("/api/measurements", "Raw rows by time")
            .with("entityId", uuid(), "Of this meter or energy source")
            .with("metric", text(), "Of this metric")
            .with("from", text(), time)
            .with("to", text(), time)
            .paged()
            .answers(200, "A page", as_json(list(schema("Row")))),
        Operation::new(Delete, "/api/measurements", "Write", "Deletes the rows that all parameters pick")
            .with("entityId", uuid(), "Of these meters or energy sources")
            .with("metric", text(), "Of this metric")
            .with("from", text(), time)
            .with("to", text(), time)
            .repeatable(&["entityId"])
            .answers(200, "How many there were", as_json(record(vec![("deleted!", integer())]))),
        write("/api/import", "A file, or one part of it")
            .with("format", file_format(), "Of the body")
            .with("site", text(), "Whose zone local times have")
            .with("mapping", text(), "The fields of a mapping file, as JSON")
            .with("precision", precision(), "Of numbers as times")
            .with("dryRun", boolean(), "Only checks")
            .body(vec![("application/octet-stream", None)])
            .answers(200, "What was taken, and what is wrong with the rest", as_json(object())),
        write("/api/imports", "Starts an import of many parts that becomes visible at once").answers(
            201,
            "Its id",
            as_json(record(vec![("id!", uuid())])),
        ),
        write("/api/imports/{id}", "Adds a part")
            .with("format", file_format(), "Of the body")
            .with("site", text(), "Whose zone local times have")
            .with("mapping", text(), "The fields of a mapping file, as JSON")
            .with("precision", precision(), "Of numbers as times")
            .body(vec![("application/octet-stream", None)])
            .answers(200, "What was taken, and what is wrong with the rest", as_json(object())),
        Operation::new(Delete, "/api/imports/{id}", "Write", "Gives up an import").answers(
            204,
            "It is gone",
            Vec::new(),
        ),
        write("/api/imports/{id}/finish", "Makes an import visible").answers(
            200,
            "New, corrected and identical rows",
            as_json(record(vec![("new!", integer()), ("corrected!", integer()), ("identical!", integer())])),
        ),
    ]);
    for path in ["/api/v2/write", "/api/v3/write_lp", "/write"] {
        all.push(
            write(path, "Line protocol, as InfluxDB takes it")
                .with("precision", text(), "Of the times")
                .with("bucket", text(), "Not looked at")
                .with("db", text(), "Not looked at")
                .body(lines())
                .answers(204, "On disk", Vec::new()),
        );
    }
    all.extend([
        read("/query", "What InfluxDB's clients ask before they write")
            .with("q", text(), "SHOW DATABASES and the like")
            .answers(200, "As InfluxDB answers", as_json(object())),
        Operation::new(Post, "/query", "Read", "The same, as a form").answers(
            200,
            "As InfluxDB answers",
            as_json(object()),
        ),
        operate(Get, "/ping", "Whether the server is there").open().answers(204, "It is", Vec::new()),
        operate(Head, "/ping", "Whether the server is there").open().answers(204, "It is", Vec::new()),
        read("/api/sql", "One query in SQL")
            .with("q", text(), "The query")
            .with("format", format(), "Instead of the header Accept")
            .with("asOf", text(), "As of this time, or a snapshot's id or name")
            .answers(200, "Its rows, streamed", rows()),
        Operation::new(Post, "/api/sql", "Read", "One query in SQL, with parameters")
            .with("format", format(), "Instead of the header Accept")
            .body(as_json(record(vec![
                ("query!", text()),
                (
                    "params",
                    ArrayBuilder::new().items(ObjectBuilder::new().schema_type(SchemaType::AnyValue)).into(),
                ),
                ("asOf", nullable(Type::String)),
            ])))
            .answers(200, "Its rows, streamed", rows()),
        read("/api/latest", "The newest reading of each series")
            .with("siteId", uuid(), "Everything on a site")
            .with("meterId", uuid(), "A meter, those below it and their sources")
            .with("entityId", uuid(), "One meter or energy source")
            .with("metric", text(), "Of this metric")
            .answers(200, "By entity and metric", as_json(list(schema("Latest"))))
            .answers(304, "As the client has it (If-None-Match)", Vec::new()),
        read(
            "/api/rollup",
            "Buckets across the meter tree, without double counting, in each site's own calendar",
        )
        .with("siteId", uuid(), "Sites; none of the three means the whole fleet")
        .with("meterId", uuid(), "Meters with everything below them")
        .with("entityId", uuid(), "Meters or energy sources alone")
        .with("metric", text(), "Required")
        .with("bucket", text(), "5m, 15m, 1h, 1d, 1w, 1mo, 1y or all; 1d unless said")
        .with("from", text(), time)
        .with("to", text(), time)
        .with("tz", text(), "One zone for all instead of each site's own")
        .with("by", named(&["total", "category", "site", "meter", "entity"]), "What one row stands for")
        .with(
            "agg",
            named(&["avg", "sum", "min", "max", "count", "first", "last", "p50", "p95"]),
            "By the metric's kind unless said",
        )
        .with("mode", named(&["auto", "own", "leaves"]), "Which meters of the tree count")
        .with("fill", named(&["none", "null", "prev", "linear", "zero"]), "What stands in empty buckets")
        .with("quality", text(), "good,estimated unless said")
        .with("asOf", text(), "As of this time, or a snapshot's id or name")
        .with("format", format(), "Instead of the header Accept")
        .repeatable(&["siteId", "meterId", "entityId"])
        .answers(200, "By group and bucket", rows())
        .answers(304, "As the client has it (If-None-Match)", Vec::new()),
        read("/api/balance", "The energy balance of sites, self-consumption, self-sufficiency, carbon")
            .with("siteId", uuid(), "None means the whole fleet")
            .with("bucket", text(), "As of rollups; 1d unless said")
            .with("from", text(), time)
            .with("to", text(), time)
            .with("tz", text(), "One zone for all instead of each site's own")
            .with("quality", text(), "good,estimated unless said")
            .with("asOf", text(), "As of this time, or a snapshot's id or name")
            .with("format", format(), "Instead of the header Accept")
            .repeatable(&["siteId"])
            .answers(200, "By site and bucket", rows()),
        sources(Post, "/api/energy-sources/{id}/test", "Tries the connection").answers(
            200,
            "Its state",
            as_json(record(vec![
                ("connectionStatus!", text()),
                ("lastTested!", instant()),
                ("message!", text()),
            ])),
        ),
        sources(Post, "/api/energy-sources/{id}/poll", "Polls now"),
        sources(Post, "/api/energy-sources/{id}/backfill", "Fetches history")
            .body(as_json(record(vec![("from!", text()), ("to!", text())]))),
        sources(Get, "/api/jobs", "What is being fetched").paged().answers(
            200,
            "A page",
            as_json(list(object())),
        ),
        sources(Get, "/api/jobs/{id}", "One of them"),
        sources(Delete, "/api/jobs/{id}", "Stops one"),
        operate(Get, "/health", "In InfluxDB's shape, and ours").open().answers(
            200,
            "Takes writes",
            as_json(object()),
        ),
        operate(Get, "/ready", "Whether requests are answered").open().answers(
            200,
            "They are",
            as_json(object()),
        ),
        operate(Get, "/metrics", "For Prometheus").answers(
            200,
            "Metrics",
            vec![("text/plain", Some(text()))],
        ),
        operate(Get, "/api/status", "Log, memory, files, fleet").answers(200, "As it is", as_json(object())),
        operate(Get, "/api/openapi.json", "This description").open().answers(
            200,
            "OpenAPI 3.1",
            as_json(object()),
        ),
        operate(Post, "/api/flush", "Writes out everything in memory").answers(
            200,
            "The snapshot that has it",
            as_json(record(vec![("snapshotId!", integer())])),
        ),
        operate(Post, "/api/compact", "Merges files, applies retention, expires snapshots")
            .with("all", boolean(), "Every month as if it were over")
            .with("dryRun", boolean(), "Only says what would be done")
            .with("force", boolean(), "Deletes by time although the clock jumped")
            .answers(200, "What was done", as_json(object())),
        operate(Post, "/api/verify", "Checks every file against the catalog")
            .with("quick", boolean(), "Only whether they are there in their size")
            .answers(200, "What was found", as_json(object())),
        operate(Post, "/api/export", "Brings a Delta Lake table up to date")
            .body(as_json(record(vec![("format!", named(&["delta"]))])))
            .answers(200, "What was done", as_json(object())),
        operate(Post, "/api/backup", "Copies everything to a directory of the server's machine")
            .body(as_json(record(vec![("directory!", text())])))
            .answers(200, "What was copied", as_json(object())),
        operate(Get, "/api/snapshots", "Snapshots with a name").answers(
            200,
            "By name",
            as_json(list(schema("Snapshot"))),
        ),
        operate(Post, "/api/snapshots", "Keeps the present state under a name")
            .body(as_json(record(vec![("name!", text())])))
            .answers(201, "It is kept", as_json(schema("Snapshot"))),
        operate(Delete, "/api/snapshots/{name}", "Lets a state expire").answers(
            204,
            "It has no name any more",
            Vec::new(),
        ),
    ]);
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let document: Value = serde_json::to_value(document()).expect("JSON");
        let described: BTreeSet<_> = document["paths"].as_object().expect("paths").keys().cloned().collect();
        let routes: BTreeSet<_> =
            super::super::routes::routes().iter().map(|route| route.path.to_owned()).collect();
        assert_eq!(described, routes);
        assert_eq!(document["openapi"], json!("3.1.0"));
    }
}
