//! `GET /api/openapi.json`: the description of this interface, for people and for tools.

mod operation;
mod operations;
mod parts;
mod schemas;

use axum::response::Response;
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder, PathItem, Paths, PathsBuilder,
    security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    tag::TagBuilder,
};

use self::{operations::operations, schemas::schemas};
use super::reply::json_response;

pub(super) async fn openapi() -> Response {
    json_response(&document())
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
