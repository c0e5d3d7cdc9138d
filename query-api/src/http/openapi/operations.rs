//! All operations.

use utoipa::openapi::{
    HttpMethod, Type,
    schema::{ArrayBuilder, ObjectBuilder, SchemaType},
};

use super::{
    operation::{Operation, as_json, rows},
    parts::*,
};

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

pub(super) fn operations() -> Vec<Operation> {
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
        write("/api/imports", "Starts an import of many parts that becomes visible at once")
            .with("dryRun", boolean(), "Only compares with what is stored")
            .answers(201, "Its id", as_json(record(vec![("id!", uuid())]))),
        Operation::new(Post, "/api/imports/undo", "Admin", "Puts back what an import changed")
            .body(as_json(record(vec![("batch!", integer()), ("dryRun", boolean())])))
            .answers(
                200,
                "Readings that are gone, that are as they were, and that were changed since",
                as_json(record(vec![
                    ("removed!", integer()),
                    ("restored!", integer()),
                    ("kept!", integer()),
                ])),
            ),
        write("/api/imports/{id}", "Adds a part")
            .with("format", file_format(), "Of the body")
            .with("site", text(), "Whose zone local times have")
            .with("mapping", text(), "The fields of a mapping file, as JSON")
            .with("precision", precision(), "Of numbers as times")
            .with("errors", integer(), "Errors told in full")
            .with("series", boolean(), "Tells what there is of each series")
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
            as_json(record(vec![
                ("new!", integer()),
                ("corrected!", integer()),
                ("identical!", integer()),
                ("batch", integer()),
            ])),
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
        .with("mode", named(&["auto", "own", "leaves", "residual"]), "Which meters of the tree count")
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
        sources(Post, "/api/energy-sources/{id}/poll", "Polls now").answers(
            200,
            "How it stands then",
            as_json(object()),
        ),
        sources(Post, "/api/energy-sources/{id}/backfill", "Fetches history")
            .body(as_json(record(vec![("from!", text()), ("to!", text()), ("dryRun", boolean())])))
            .answers(200, "The job, or with dryRun what it would take", as_json(object())),
        sources(
            Post,
            "/api/energy-sources/{id}/dry-run",
            "Shows what a poll would store, or what an answer says",
        )
        .body(as_json(record(vec![("stream", nullable(Type::String)), ("answer", object())])))
        .answers(200, "By kind of answer", as_json(list(object()))),
        sources(Post, "/api/energy-sources/{id}/replay", "Decodes kept answers again")
            .body(as_json(record(vec![("from!", text()), ("to!", text())])))
            .answers(200, "What came of it", as_json(object())),
        sources(
            Post,
            "/api/discovery",
            "Lists the systems that a vendor's credential sees, and creates those that are wanted",
        )
        .body(as_json(record(vec![("like", uuid()), ("metadata", object()), ("create", list(text()))])))
        .answers(200, "The systems, with the sources that poll them", as_json(list(object()))),
        sources(Get, "/api/jobs", "What is being fetched").paged().answers(
            200,
            "A page",
            as_json(list(object())),
        ),
        sources(Get, "/api/jobs/{id}", "One of them").answers(200, "As it stands", as_json(object())),
        sources(Delete, "/api/jobs/{id}", "Stops one").answers(200, "As it stands then", as_json(object())),
        sources(Get, "/api/gaps", "Times without readings where the cadence expects some, the newest first")
            .with("sourceId", uuid(), "Of this energy source; of all unless said")
            .with("entityId", uuid(), "Of the series of this meter or energy source; of all unless said")
            .with("state", named(&["open", "filled", "empty"]), "What became of it; all unless said")
            .with("limit", text(), "At most so many; 1000 unless said")
            .answers(200, "The gaps", as_json(list(object()))),
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
